"""Media in chat messages."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.media.content import MediaPart, load_media, load_media_async, take_media
from octavo.media.fetch import PIECE, FetchPolicy, MediaFetcher, decode_base64
from octavo.media.limits import MediaLimits
from octavo.text.media_marks import mark_media
from tests.media.test_hostile import wav

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 9, 3), dtype=np.uint8))


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PARTS = [
    {"type": "image_url", "image_url": {"url": data_url(png())}},
    {"type": "image_url", "image_url": data_url(png())},
    {"type": "input_image", "image_url": data_url(png())},
    {"type": "image_pil", "image_pil": PICTURE},
    {"type": "image", "image": PICTURE},
    {"type": "image", "url": data_url(png())},
    {"type": "image", "image": np.asarray(PICTURE)},
]


@pytest.mark.parametrize("part", PARTS)
def test_pictures(part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": ["Look: ", part, {"type": "text", "text": "What?"}]}]
    rest, parts = take_media(messages)
    assert rest == [{"role": "user", "content": ["Look: ", {"type": "image"}, {"type": "text", "text": "What?"}]}]
    for items in (load_media(parts, MediaFetcher()), asyncio.run(load_media_async(parts, MediaFetcher()))):
        (got,) = items.images
        assert got == PICTURE


def test_sounds_rows_and_files(tmp_path: Path) -> None:
    sound = wav(np.zeros(50, np.int16).size)
    (tmp_path / "a.wav").write_bytes(sound)
    content = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"file://{tmp_path}/a.wav"}},
        {"type": "image_embeds", "image_embeds": np.ones((3, 4), np.float32)},
    ]
    rest, parts = take_media(
        [{"role": "system", "content": "s"}, {"role": "user", "content": content}, {"role": "assistant"}]
    )
    assert [p.name for p in parts] == ["audio 1", "audio 2", "image 1"]
    assert [p["type"] for p in rest[1]["content"]] == ["audio", "audio", "image"]
    items = load_media(parts, MediaFetcher(FetchPolicy(folder=tmp_path)))
    assert [len(s.samples) for s in items.audios] == [50, 50]  # type: ignore[union-attr]
    assert items.images[0].rows.shape == (3, 4)  # type: ignore[union-attr]
    with pytest.raises(InvalidRequestError, match="audio 2 is a file"):
        load_media(parts, MediaFetcher())


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url"}, "image 1 has nothing in it"),
        ({"type": "image_url", "image_url": {}}, "image 1 has nothing in it"),
        ({"type": "image_url", "image_url": 7}, "image.* of type int"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "image 1 begins with"),
        ({"type": "image", "image": "photo.jpg"}, "image 1 begins with"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}, "image 1 leads to"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "no picture"),
        ({"type": "input_audio", "input_audio": {"data": "???"}}, "audio 1 is no base64"),
        ({"type": "image_embeds", "image_embeds": "gASVAAAA"}, "image 1 has no image_embeds"),
        ({"type": "video_url", "video_url": {"url": data_url(png())}}, "video"),
    ],
)
def test_what_is_wrong_is_named(part: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        load_media(take_media([{"role": "user", "content": [part]}])[1], MediaFetcher())


def test_together_they_are_bounded() -> None:
    parts = [MediaPart("image", data_url(png()), f"image {i}") for i in range(8)]
    tight = MediaFetcher(FetchPolicy(limits=MediaLimits(max_bytes=5 * len(png()))))
    for load in (load_media, lambda *args: asyncio.run(load_media_async(*args))):
        with pytest.raises(InvalidRequestError, match="larger"):
            load(parts, tight)
    with pytest.raises(InvalidRequestError, match="pixels of one prompt"):
        load_media(parts, MediaFetcher(FetchPolicy(limits=MediaLimits(max_prompt_pixels=300))))
    with pytest.raises(InvalidRequestError, match="257 media"):
        take_media([{"role": "user", "content": [{"type": "image", "image": PICTURE}] * 257}])


def test_marks() -> None:
    def mark(kind: str, number: int) -> str:
        return "" if kind == "audio" else f"<{kind}_{number}>"

    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}, "b", {"type": "image"}]},
        {"role": "assistant", "content": "c"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "see <image_3> and"}, {"type": "image"}, {"type": "audio"}],
        },
    ]
    assert [m["content"] for m in mark_media(messages, mark)] == [
        "<image_1>\n<image_2>\na\nb",
        "c",
        "see <image_3> and",
    ]


def test_base64_in_pieces() -> None:
    for size in (0, 1, 2, 3, 3 * PIECE // 4 - 1, 3 * PIECE // 4, 3 * PIECE // 4 + 1, 2 * PIECE):
        data = np.random.default_rng(size).bytes(size)
        if data:
            assert decode_base64(base64.b64encode(data).decode()) == data
    whole = "A" * PIECE
    for wrong in (whole + "=" + "A" * 7, "AA==" + whole, whole + "AA=A", whole + "A", whole + "A!AA", whole + "=" * 3):
        with pytest.raises(InvalidRequestError, match="base64"):
            decode_base64(wrong)
