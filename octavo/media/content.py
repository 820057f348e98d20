"""Media among the content parts of chat messages: taken out, fetched, decoded, and marked where they were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequestError, shorten
from octavo.media.fetch import MediaFetcher, decode_base64
from octavo.media.items import KINDS, MAX_ITEMS, MediaItems, read_media
from octavo.media.sources import check_length

Message = Mapping[str, Any]
IOOptions = Mapping[str, Mapping[str, Any]]
_TYPES = {
    **{f"{kind}_url": kind for kind in KINDS},
    **{f"input_{kind}": kind for kind in KINDS},
    **{f"{kind}_embeds": kind for kind in KINDS},
    **{kind: kind for kind in KINDS},
    "image_pil": "image",
}
"""Types of parts, in OpenAI's words, vLLM's and transformers', and the kind of media that they have."""


@dataclass(frozen=True, slots=True)
class MediaPart:
    """An item of a conversation, not decoded yet."""

    kind: str
    source: Any
    """A URL if it is text; bytes, a picture, an array, rows."""
    name: str
    """How messages call it."""


def take_media(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Messages whose media parts are {"type": kind} alone, as chat templates expect them, and the media in order.

    Raises InvalidRequestError for a part whose media are missing or of a wrong kind.
    """
    taken: list[MediaPart] = []
    counts = dict.fromkeys(KINDS, 0)

    def without(content: Any) -> Any:
        if not isinstance(content, Sequence) or isinstance(content, str):
            return content
        parts = []
        for part in content:
            kind = _TYPES.get(str(part.get("type"))) if isinstance(part, Mapping) else None
            if kind is not None:
                counts[kind] += 1
                taken.append(MediaPart(kind, _source(part, kind, counts[kind]), f"{kind} {counts[kind]}"))
                part = {"type": kind}
            parts.append(part)
        return parts

    rest = [{**m, "content": without(m["content"])} if "content" in m else dict(m) for m in messages]
    if len(taken) > MAX_ITEMS:
        raise InvalidRequestError(f"the conversation has {len(taken):,} media. Send {MAX_ITEMS} at most.")
    return rest, taken


def _source(part: Mapping[str, Any], kind: str, number: int) -> Any:
    """What a part has: under its type's name or its kind's, by itself or as {"url": ...} or {"data": ...}."""
    name = f"{kind} {number}"
    value = next(
        (part[key] for key in (str(part["type"]), f"{kind}_url", kind, "url") if part.get(key) is not None), None
    )
    if part["type"] == f"{kind}_embeds":
        if value is None or isinstance(value, str):
            raise InvalidRequestError(f"{name} has no {kind}_embeds that can be read. Give a tensor or an array.")
        return value if isinstance(value, Mapping) else {f"{kind}_embeds": value}
    if isinstance(value, Mapping):
        if isinstance(value.get("data"), str):
            return decode_base64(value["data"], name=name)
        value = value.get("url")
    if value is None:
        raise InvalidRequestError(
            f"{name} has nothing in it. Write it as {{'type': '{kind}_url', '{kind}_url': {{'url': ...}}}}."
        )
    return value


MediaData = dict[str, list[Any]]
"""What `multi_modal_data` is: items by kind, not decoded yet."""


def fetch_media(parts: Sequence[MediaPart], fetcher: MediaFetcher) -> MediaData:
    """The items behind parts, fetched in turn. Raises InvalidRequestError that names the part."""
    values, total = [], 0
    for part in parts:
        values.append(fetcher.fetch(part.source, part.name) if isinstance(part.source, str) else part.source)
        total += _count(values[-1], total, fetcher, part)
    return _by_kind(parts, values)


async def fetch_media_async(parts: Sequence[MediaPart], fetcher: MediaFetcher) -> MediaData:
    """The same, fetched several at a time, while the event loop goes on."""
    import asyncio

    total = 0
    gate = asyncio.Semaphore(4)

    async def value(part: MediaPart) -> Any:
        nonlocal total
        if not isinstance(part.source, str):
            return part.source
        async with gate:
            data = await fetcher.fetch_async(part.source, part.name)
            total += _count(data, total, fetcher, part)
            return data

    tasks = [asyncio.create_task(value(part)) for part in parts]
    try:
        return _by_kind(parts, await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def load_media(parts: Sequence[MediaPart], fetcher: MediaFetcher, io_options: IOOptions | None = None) -> MediaItems:
    """The items behind parts, fetched in turn and decoded. Raises InvalidRequestError that names the part."""
    return read_media(fetch_media(parts, fetcher), io_options, fetcher.policy.limits)


async def load_media_async(
    parts: Sequence[MediaPart], fetcher: MediaFetcher, io_options: IOOptions | None = None
) -> MediaItems:
    """The same, fetched several at a time, while the event loop goes on."""
    import asyncio

    data = await fetch_media_async(parts, fetcher)
    return await asyncio.to_thread(read_media, data, io_options, fetcher.policy.limits)


def _count(value: Any, total: int, fetcher: MediaFetcher, part: MediaPart) -> int:
    """Bytes of what was fetched. Raises InvalidRequestError where a conversation's together exceed one item's limit."""
    length = len(value) if isinstance(value, bytes) else 0
    if length:
        check_length(total + length, fetcher.policy.limits, f"the conversation with {part.name}")
    return length


def _by_kind(parts: Sequence[MediaPart], values: Sequence[Any]) -> MediaData:
    data: MediaData = {}
    for part, value in zip(parts, values, strict=True):
        if isinstance(value, str):
            raise InvalidRequestError(f"{part.name} is {shorten(value, 40)!r}, not media.")
        data.setdefault(part.kind, []).append(value)
    return data
