"""What a processor hands on: a prompt's tokens, and for each item what its tower reads and where its rows go."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from octavo.errors import InvalidRequestError
from octavo.media.pictures import Picture, picture_content
from octavo.media.sounds import Sound
from octavo.media.sources import Array

Data = dict[str, Array]
"""What a tower reads of one item, by the reference's names; "embeddings" are rows that need no tower."""


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens that stand in a prompt for one item."""

    token_ids: list[int]
    token: int | None = None
    """The token whose places take the tower's rows, in turn; None for all places."""

    def takes(self) -> Array:
        """Which places take a row: bool of shape (tokens,)."""
        ids = np.asarray(self.token_ids)
        return np.ones(len(ids), bool) if self.token is None else ids == self.token


@dataclass(frozen=True, slots=True)
class MediaFeature:
    """One item of a prompt: rows that replace, or join, those of the token table."""

    kind: str
    """image, video or audio."""
    data: Data
    offset: int
    """The first place in the prompt that takes a row."""
    length: int
    """Places from there to the last that takes one."""
    digest: bytes
    """32 bytes that stand for the item's content and how it was processed, whatever its place."""
    takes: Array | None = None
    """Which of these places take a row, bool of shape (length,); None for all."""
    visible: tuple[int, int | None] | None = None
    """Where cross-attention sees it: from this place on, up to that one (None: to the end of the answer)."""
    cross_rows: int = 0
    """Rows that its tower gives to cross-attention."""

    @property
    def num_rows(self) -> int:
        """Rows that its tower gives to the prompt."""
        return self.length if self.takes is None else int(self.takes.sum())


@dataclass(frozen=True, slots=True)
class Processed:
    """A prompt whose placeholders are written out, and its features in the order of their places."""

    token_ids: list[int]
    features: list[MediaFeature]
    positions: Array | None = None
    """int64 of shape (axes, tokens), where they are not 0, 1, 2, ...; an answer goes on after the largest."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """An item as its tower's rows, computed elsewhere."""

    rows: Array
    """float32 of shape (rows, hidden_size)."""
    grid: tuple[int, ...] = ()
    """Qwen2-VL's time, height and width in patches; for those that cut pictures, the picture's height and width."""


Item = Picture | Array | Sound | Embeddings
"""A decoded picture, a film's frames (frames, height, width, 3), a sound, or rows of any of them."""


def content_digest(item: Item, *how: object) -> bytes:
    """32 bytes for an item's content, and whatever else decides what becomes of it."""
    digest = hashlib.blake2b(digest_size=32)
    for part in (*_content(item), *how):
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def _content(item: Item) -> tuple[Any, ...]:
    if isinstance(item, Embeddings):
        return "embeddings", item.rows.shape, item.rows.tobytes(), item.grid
    if isinstance(item, Sound):
        return "sound", item.rate, item.samples.tobytes()
    if isinstance(item, np.ndarray):
        return "film", item.shape, item.tobytes()
    return picture_content(item)


def pack(data: Data) -> bytes:
    """Arrays as bytes, for another process."""
    return msgspec.msgpack.encode({name: (a.dtype.str, a.shape, a.tobytes()) for name, a in data.items()})


def unpack(packed: bytes) -> Data:
    """The arrays that `pack` made bytes of; they may not be written to."""
    kept = msgspec.msgpack.decode(packed, type=dict[str, tuple[str, list[int], bytes]])
    return {name: np.frombuffer(data, dtype).reshape(shape) for name, (dtype, shape, data) in kept.items()}


def place(span: Span, start: int, kind: str, data: Data, digest: bytes) -> MediaFeature:
    """The feature of an item whose span begins at `start`."""
    takes = span.takes()
    where = np.flatnonzero(takes)
    first, last = int(where[0]), int(where[-1])
    inner = takes[first : last + 1]
    return MediaFeature(kind, data, start + first, last - first + 1, digest, None if inner.all() else inner)


def spread_positions(tokens: int, axes: int, spans: Sequence[tuple[int, Array]]) -> Array:
    """Positions (axes, tokens) of a prompt in which some spans have their own: (start, (axes, length) from 0) each.

    Text goes on after the largest position before it, and so does a span.
    """
    positions = np.empty((axes, tokens), np.int64)
    done, following = 0, 0
    for start, inner in [*spans, (tokens, np.empty((axes, 0), np.int64))]:
        end = start + inner.shape[1]
        positions[:, done:start] = following + np.arange(start - done)
        following += start - done
        positions[:, start:end] = following + inner
        following += int(inner.max()) + 1 if inner.size else 0
        done = end
    return positions


def find_sequence(token_ids: Sequence[int], pattern: Sequence[int], start: int = 0) -> int:
    """Where `pattern` stands in `token_ids` from `start` on; -1 if nowhere."""
    end = len(token_ids) - len(pattern)
    while start <= end:
        try:
            start = token_ids.index(pattern[0], start, end + 1)
        except ValueError:
            return -1
        if list(token_ids[start : start + len(pattern)]) == list(pattern):
            return start
        start += 1
    return -1


def as_embeddings(rows: Array, name: str, grid: tuple[int, ...] = ()) -> Embeddings:
    """Rows that need no tower. Raises InvalidRequestError for another shape or type."""
    if rows.ndim != 2 or not rows.size or rows.dtype.kind != "f":
        given = f"{name} has embeddings of shape {rows.shape} and type {rows.dtype}"
        raise InvalidRequestError(f"{given}. Give floats of shape (rows, hidden_size).")
    rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise InvalidRequestError(f"{name} has embeddings that are not finite. Take out what is NaN or infinite.")
    return Embeddings(rows, grid)


class Option(NamedTuple):
    """A setting that a request may change: its least and greatest values."""

    name: str
    low: float
    high: float
    """Both whole, of a setting that is a whole number."""


def checked_options(options: Mapping[str, Any], known: Sequence[Option], family: str) -> dict[str, Any]:
    """Options of a request, held against their bounds. Raises InvalidRequestError that names the option."""
    bounds = {option.name: (option.low, option.high) for option in known}
    for name, value in options.items():
        if name not in bounds:
            names = ", ".join(bounds) or "none"
            raise InvalidRequestError(f"{family} has no mm_processor_kwargs {name!r:.80}; it has {names}.")
        low, high = bounds[name]
        kinds = {type(low), int} if isinstance(low, float) else {type(low)}
        if type(value) not in kinds or not low <= value <= high:
            raise InvalidRequestError(f"mm_processor_kwargs {name} is {value!r:.80}. Give {low} to {high}.")
    return dict(options)
