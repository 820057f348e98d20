"""multi_modal_data as users write it, and what comes of each kind."""

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soxr
import torch
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.media.feature import Embeddings
from octavo.media.items import read_media
from octavo.media.limits import MediaLimits
from octavo.media.pictures import decode_picture
from octavo.media.sounds import Sound, decode_sound

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def encoded(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        PICTURE, PIXELS, PIXELS.astype(np.int64), PIXELS / 255, (PIXELS / 255).astype(np.float32),
        PIXELS.transpose(2, 0, 1), torch.from_numpy(PIXELS), torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
        encoded("PNG"), bytearray(encoded("BMP")), encoded("TIFF"), encoded("WEBP", lossless=True), encoded("PPM"),
    ],
)  # fmt: skip
def test_pictures(value: object) -> None:
    (picture,) = read_media({"image": value}).images
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)
    (again,) = read_media({"image": [value]}).images
    assert again == picture


def test_pictures_from_files(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(decode_picture(path)), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    turned = np.asarray(decode_picture(encoded("PNG", exif=exif)))
    steps = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (1, 2), 6: (3, 0), 7: (3, 2), 8: (1, 0)}
    turns, mirror = steps[orientation]
    want = np.rot90(PIXELS, turns)
    want = want[:, ::-1] if mirror == 1 else want[::-1] if mirror == 2 else want
    np.testing.assert_array_equal(turned, want)


def test_orders_and_names() -> None:
    found = read_media({"image": [PICTURE, PIXELS], "audio": [(np.ones(5), 16000), (np.ones(6), 8000)], "video": None})
    assert (len(found.images), len(found.videos), len(found.audios)) == (2, 0, 2)
    with pytest.raises(InvalidRequestError, match="image 2 of 2 is of type"):
        read_media({"image": [PICTURE, 3]})
    with pytest.raises(InvalidRequestError, match="Did you mean image"):
        read_media({"images": PICTURE})
    with pytest.raises(InvalidRequestError, match="256 at most"):
        read_media({"image": [PICTURE] * 257})


def test_films() -> None:
    frames = np.stack([PIXELS, PIXELS[::-1]])
    for value in (frames, [PIXELS, PIXELS[::-1]], [PICTURE, Image.fromarray(PIXELS[::-1])], frames / 255, [frames]):
        (film,) = read_media({"video": value}).videos
        np.testing.assert_array_equal(film, frames)
    assert len(read_media({"video": [frames, frames]}).videos) == 2


def test_film_from_a_file_is_sampled_evenly() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "bgr0"
        for i in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), i * 10, np.uint8))))
        container.mux(stream.encode())
    for options, want in (
        ({"num_frames": 3}, [0, 90, 190]),
        ({"num_frames": -1}, list(range(0, 200, 10))),
        ({"fps": 5}, list(range(0, 200, 20))),
        ({"fps": 2.5, "num_frames": 2}, [0, 160]),
    ):
        (film,) = read_media({"video": file.getvalue()}, {"video": options}).videos
        assert film[:, 0, 0, 0].tolist() == want
        assert (film == film[:, :1, :1]).all()


def wav(samples: Any, rate: int, channels: int = 1) -> bytes:
    data = samples.tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_sounds() -> None:
    samples = np.random.default_rng(2).integers(-(2**15), 2**15, 999).astype(np.int16)
    floats = samples.astype(np.float32) / 2**15
    stereo = np.stack([samples, samples // 2])
    unsigned = (samples // 256 + 128).astype(np.uint8)
    for value in (wav(samples, 22050), (floats, 22050), (samples, 22050), (floats.tolist(), 22050.0),
                  Sound(floats, 22050), (torch.from_numpy(floats), 22050)):  # fmt: skip
        sound = decode_sound(value)
        assert sound.rate == 22050
        np.testing.assert_array_equal(sound.samples, floats)
    np.testing.assert_allclose(decode_sound((unsigned, 8000)).samples, samples // 256 / 128, atol=1e-7)
    for value in (wav(np.ascontiguousarray(stereo.T), 8000, 2), (stereo, 8000), (stereo.T, 8000)):
        np.testing.assert_allclose(decode_sound(value).samples, stereo.mean(0) / 2**15, atol=1e-6)
    resampled = decode_sound((floats, 22050)).at_rate(16000)
    np.testing.assert_array_equal(resampled.samples, soxr.resample(floats, 22050, 16000, "HQ"))
    assert resampled.rate == 16000


def test_rows() -> None:
    rows = torch.arange(24.0).reshape(6, 4)
    for value in (rows, rows[None], {"image_embeds": rows}, {"image_embeds": rows.numpy()}, rows.bfloat16()):
        (item,) = read_media({"image": value}).images
        assert isinstance(item, Embeddings)
        np.testing.assert_array_equal(item.rows, rows)
    assert [len(x.rows) for x in read_media({"image": rows.reshape(3, 2, 4)}).images] == [2, 2, 2]
    assert [len(x.rows) for x in read_media({"image": [rows, rows[:2]]}).images] == [6, 2]
    grid = torch.tensor([[1, 4, 4], [1, 4, 2]])
    items = read_media({"image": {"image_embeds": rows, "image_grid_thw": grid}}).images
    assert [(len(x.rows), x.grid) for x in items] == [(4, (1, 4, 4)), (2, (1, 4, 2))]
    assert read_media({"image": {"image_embeds": rows, "image_sizes": [7, 9]}}).images[0].grid == (7, 9)
    for wrong, says in (
        ({"image_embeds": torch.full((2, 2), float("nan"))}, "finite"),
        ({"image_embeds": "x"}, "no tensor"),
        ({"pixel_values": rows}, "without image_embeds"),
        ({"image_embeds": rows[0]}, "shape"),
        ({"image_embeds": rows.int()}, "type int32"),
        ({"image_embeds": rows, "image_grid_thw": torch.tensor([[0, 4, 4]])}, "grid"),
        ({"image_embeds": rows[None], "image_grid_thw": grid}, "1 items and 2 grids"),
    ):
        with pytest.raises(InvalidRequestError, match=says):
            read_media({"image": wrong})


def test_limits_reach_every_kind() -> None:
    for data in ({"image": PICTURE}, {"video": np.stack([PIXELS])}):
        with pytest.raises(InvalidRequestError, match="20 x 12 pixels"):
            read_media(data, limits=MediaLimits(max_pixels=239))
    with pytest.raises(InvalidRequestError, match="seconds long"):
        read_media({"audio": (np.zeros(100), 10)}, limits=MediaLimits(max_seconds=9))
