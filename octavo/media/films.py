"""Films as arrays of frames, all of those that were given or some of a file's."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from octavo.errors import InvalidRequestError, shorten
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits, check_film_size, check_picture_size
from octavo.media.pictures import decode_picture, level_bytes
from octavo.media.sources import Array, as_array, as_bytes

_KINDS = "bytes of a film's file, a path, a list of pictures, or an array of shape (frames, height, width, 3)"
DEMUXERS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,flv,mpeg,mpegts,mpegvideo,ogg,gif,asf,h264,hevc,"
    "wav,w64,mp3,flac,aac,aiff,au,amr,caf"
)
"""What is read: no list of other addresses (HLS, DASH, concat), by which a file could name this machine's own."""


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Which frames of a film's file are taken; an array's frames are all taken."""

    num_frames: int = 32
    """At most so many, at equal distances from the first to the last; -1 for all."""
    fps: float | None = None
    """So many for each second of the film, though not more than num_frames."""

    def indices(self, total: int, rate: float) -> list[int]:
        """Which of `total` frames, of which `rate` pass in a second."""
        if self.fps is not None and rate > 0:
            step = max(rate / self.fps, 1.0)
            chosen = [int(i * step) for i in range(int(np.ceil(total / step))) if int(i * step) < total]
        else:
            chosen = list(range(total))
        if 0 < self.num_frames < len(chosen):
            places = np.linspace(0, len(chosen) - 1, self.num_frames).astype(int)
            chosen = [chosen[int(i)] for i in places]
        return chosen


def frame_sampling(options: Mapping[str, Any]) -> FrameSampling:
    """Sampling by a request's options `num_frames` and `fps`. Raises InvalidRequestError for other names and values."""
    unknown = sorted(set(options) - {"num_frames", "fps"})
    if unknown:
        raise InvalidRequestError(f"films have no option {shorten(unknown[0])!r}; they have num_frames and fps.")
    count, fps = options.get("num_frames", 32), options.get("fps")
    if isinstance(count, bool) or not isinstance(count, int) or not (count == -1 or count > 0):
        raise InvalidRequestError(f"num_frames is {shorten(count)}. Give a count above 0, or -1 for all frames.")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= 1000):
        raise InvalidRequestError(f"fps is {shorten(fps)}. Give frames per second, above 0.")
    return FrameSampling(count, None if fps is None else float(fps))


def decode_film(
    value: object,
    sampling: FrameSampling = FrameSampling(),
    limits: MediaLimits = DEFAULT_LIMITS,
    name: str = "the video",
) -> Array:
    """A film's frames as bytes of shape (frames, height, width, 3).

    Args:
        value: bytes of a file, a path, a list of pictures, or an array (frames, height, width, 3), also with the
            channels before height. Of a file frames are sampled, of the others all are taken.

    Raises InvalidRequestError for what is no film, is damaged, or exceeds the limits.
    """
    data = as_bytes(value, limits, name)
    if data is not None:
        return _decode_file(data, sampling, limits, name)
    array = as_array(value)
    if array is not None:
        return _frames_of_array(array, limits, name)
    if not isinstance(value, Sequence):
        raise InvalidRequestError(f"{name} is of type {type(value).__name__}. Give {_KINDS}.")
    check_film_size(len(value), 1, 1, limits, name)
    frames: list[Array] = []
    for i, one in enumerate(value):
        frame = np.asarray(decode_picture(one, limits, f"frame {i} of {name}"))
        check_film_size(len(value), frame.shape[0], frame.shape[1], limits, name)
        if frames and frame.shape != frames[0].shape:
            sizes = f"{frames[0].shape[1::-1]} and {frame.shape[1::-1]}"
            raise InvalidRequestError(f"{name} has frames of different sizes, {sizes}. Bring them to one size.")
        frames.append(frame)
    return np.stack(frames)


def _frames_of_array(array: Array, limits: MediaLimits, name: str) -> Array:
    given = f"{name} is an array of shape {array.shape} and type {array.dtype}"
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3:
        raise InvalidRequestError(f"{given}. Give {_KINDS}.")
    check_film_size(array.shape[0], array.shape[1], array.shape[2], limits, name)
    return np.ascontiguousarray(level_bytes(array, given))


def open_container(data: bytes) -> Any:
    """A container of those that are read, over bytes; nothing in it can open another file or address."""
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "crypto"}
    import av

    return av.open(io.BytesIO(data), mode="r", container_options=options, metadata_errors="replace")


def _decode_file(data: bytes, sampling: FrameSampling, limits: MediaLimits, name: str) -> Array:
    try:
        with open_container(data) as container:
            if not container.streams.video:
                raise InvalidRequestError(f"{name} has no pictures in it. Send a film.")
            stream = container.streams.video[0]
            check_picture_size(stream.height or 1, stream.width or 1, limits, f"a frame of {name}")
            total = _count_frames(data, limits, name)
            chosen = sampling.indices(total, float(stream.average_rate or 0))
            check_film_size(len(chosen), stream.height or 1, stream.width or 1, limits, name)
            return _collect(_decoded(container, stream, limits), chosen, limits, name)
    except InvalidRequestError:
        raise
    except Exception as error:  # libav has an error class for each of its numbers, and PyAV raises its own beside
        raise InvalidRequestError(f"{name} cannot be decoded as a film ({shorten(error, 120)}).") from error


def _count_frames(data: bytes, limits: MediaLimits, name: str) -> int:
    """Packets of the first film in a file: a header may promise any number."""
    total = 0
    with open_container(data) as container:
        for packet in container.demux(video=0):
            total += bool(packet.size)
            if total > limits.max_decoded_frames:
                allowed = f"{limits.max_decoded_frames:,} are read"
                raise InvalidRequestError(f"{name} has too many frames; of a file {allowed}. Send a part of it.")
    return total


def _decoded(container: Any, stream: Any, limits: MediaLimits) -> Iterator[Any]:
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    stream.thread_type = "AUTO"
    yield from container.decode(stream)


def _collect(frames: Iterator[Any], chosen: Sequence[int], limits: MediaLimits, name: str) -> Array:
    """Those frames whose places are in `chosen`; a file that breaks off in the middle is an error."""
    wanted = set(chosen)
    found: list[Array] = []
    for i, frame in enumerate(frames):
        if i in wanted:
            check_film_size(len(chosen), frame.height, frame.width, limits, name)
            picture = frame.to_ndarray(format="rgb24")
            if found and picture.shape != found[0].shape:
                picture = np.asarray(Image.fromarray(picture).resize(found[0].shape[1::-1]))
            found.append(picture)
        if i >= chosen[-1]:
            break
    if not found:
        raise InvalidRequestError(f"{name} has no frame that can be decoded. Send it again.")
    return np.stack(found)
