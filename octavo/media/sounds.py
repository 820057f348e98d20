"""Sounds as samples of one channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import InvalidRequestError, shorten
from octavo.media.films import open_container
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits, check_sound_size
from octavo.media.sources import Array, as_array, as_bytes

_KINDS = "bytes of a sound's file, a path, or a pair (samples, rate)"
MAX_RATE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples of one channel, float32 of shape (samples,), usually from -1 to 1; `rate` of them pass in a second."""

    samples: Array
    rate: int

    def at_rate(self, rate: int) -> "Sound":
        """The same sound with `rate` samples a second."""
        if rate == self.rate:
            return self
        import soxr

        return Sound(soxr.resample(self.samples, self.rate, rate, quality="HQ").astype(np.float32, copy=False), rate)


def decode_sound(
    value: object, limits: MediaLimits = DEFAULT_LIMITS, name: str = "the audio", rate: int | None = None
) -> Sound:
    """A sound, mixed to one channel.

    Args:
        value: bytes of a file, a path, or a pair (samples, rate): floats, or integers over their type's range, of
            shape (samples,), (channels, samples) or (samples, channels).
        rate: samples a second that a file's are changed to while it is read, so that a long one needs less memory;
            None to leave them.

    Raises InvalidRequestError for what is no sound, is damaged, or exceeds the limits.
    """
    data = as_bytes(value, limits, name)
    if data is not None:
        return _decode_file(data, limits, name, rate)
    if isinstance(value, Sound):
        value = (value.samples, value.rate)
    if not isinstance(value, tuple) or len(value) != 2:
        raise InvalidRequestError(f"{name} is of type {type(value).__name__}. Give {_KINDS}.")
    samples, own = value
    if isinstance(own, bool) or not isinstance(own, int | float | np.number) or not 1 <= own <= MAX_RATE:
        raise InvalidRequestError(f"{name} has a rate of {shorten(own)}. Give samples per second, 1 to {MAX_RATE:,}.")
    return _from_array(_plain(samples, name), int(own), limits, name)


def _plain(samples: Any, name: str) -> Array:
    array = as_array(samples)
    if array is None and isinstance(samples, Sequence) and not isinstance(samples, str | bytes):
        try:
            array = np.asarray(samples, dtype=np.float32)
        except (TypeError, ValueError):
            array = None
    if array is None or array.dtype.kind not in "fiu":
        kind = type(samples).__name__ if array is None else array.dtype
        raise InvalidRequestError(f"{name} has samples of type {kind}. Give numbers, in {_KINDS}.")
    return array


def _from_array(array: Array, rate: int, limits: MediaLimits, name: str) -> Sound:
    if array.ndim not in (1, 2):
        raise InvalidRequestError(f"{name} has samples of shape {array.shape}. Give one channel, shape (samples,).")
    channels = array[None] if array.ndim == 1 else array if array.shape[0] <= array.shape[1] else array.T
    check_sound_size(channels.shape[1], channels.shape[0], rate, limits, name)
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        middle = 0 if info.min < 0 else (info.max + 1) / 2
        channels = (channels.astype(np.float32) - middle) / (info.max + 1 - middle)
    samples = channels[0] if len(channels) == 1 else channels.mean(axis=0, dtype=np.float32)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise InvalidRequestError(f"{name} has samples that are not finite. Take out what is NaN or infinite.")
    return Sound(samples, rate)


def _decode_file(data: bytes, limits: MediaLimits, name: str, rate: int | None) -> Sound:
    try:
        with open_container(data) as container:
            if not container.streams.audio:
                raise InvalidRequestError(f"{name} has no sound in it. Send a file with one.")
            stream = container.streams.audio[0]
            check_sound_size(1, stream.codec_context.channels, 1, limits, name)
            return _collect(container, stream, limits, name, rate)
    except InvalidRequestError:
        raise
    except Exception as error:  # libav has an error class for each of its numbers, and PyAV raises its own beside
        raise InvalidRequestError(f"{name} cannot be decoded as a sound ({shorten(error, 120)}).") from error


def _collect(container: Any, stream: Any, limits: MediaLimits, name: str, to_rate: int | None) -> Sound:
    import av
    import soxr

    rate, pieces, length = int(stream.rate), list[Array](), 0
    change = soxr.ResampleStream(rate, to_rate, 1, "float32") if to_rate not in (None, rate) else None
    to_floats = av.AudioResampler(format="fltp")
    for frame in container.decode(stream):
        for piece in to_floats.resample(frame):
            floats = piece.to_ndarray()
            length += floats.shape[1]
            check_sound_size(length, floats.shape[0], rate, limits, name)
            mixed = floats.mean(axis=0, dtype=np.float32)
            pieces.append(mixed if change is None else change.resample_chunk(mixed))
    if not pieces:
        raise InvalidRequestError(f"{name} has no sound that can be decoded. Send it again.")
    if change is not None:
        pieces.append(change.resample_chunk(np.empty(0, np.float32), last=True))
    return _from_array(np.concatenate(pieces), rate if change is None or to_rate is None else to_rate, limits, name)
