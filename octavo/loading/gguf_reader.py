"""The header of a GGUF file: its metadata and where its tensors lie.

The file is treated as hostile. Every length is checked against the file's size before it is believed, counts have an
end, and a value is made only when it is asked for: an array that nobody reads costs the walk over it.
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from octavo.errors import CheckpointError

MAX_PAIRS, MAX_TENSORS = 1 << 14, 1 << 14
MAX_STRINGS = 1 << 22
"""In all of a header's arrays; the largest vocabularies have a million with their merges."""
MAX_STRING_BYTES, MAX_ARRAY_BYTES = 1 << 20, 1 << 24
"""Of a single value that is read. Others are only skipped."""
MAX_NAME_BYTES, MAX_DIMS = 127, 4

PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""What llama.cpp calls the parts of a file: model-00001-of-00003.gguf."""

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_SIZES = {kind: np.dtype(code).itemsize for kind, code in _NUMPY.items()}


def shown(name: object) -> str:
    """A name as errors have it: quoted, and cut where it is long."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(str(name))} characters)"


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: its shape in PyTorch's order (rows first), and which of a split file's parts has it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int
    part: int = 0


@dataclass(frozen=True)
class _Span:
    """Where a value lies: `count` items of an array of `item`, or one value of `kind`."""

    kind: int
    at: int
    item: int = 0
    count: int = 1


class Metadata(Mapping[str, Any]):
    """A header's values by key, made of the file's bytes when they are asked for.

    Raises CheckpointError for a text that is not UTF-8 and for values too long to be what they say.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self.path = data, path
        self._spans: dict[str, _Span] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: object) -> bool:
        return key in self._spans

    def __getitem__(self, key: str) -> Any:
        span = self._spans[key]
        if span.kind == _STRING:
            return self._text(key, span.at)
        if span.kind != _ARRAY:
            return self._numbers(span.kind, span.at, 1)[0].item()
        return self._strings(key, span) if span.item == _STRING else self.array(key).tolist()

    def array(self, key: str) -> "np.ndarray[Any, Any]":
        """An array of numbers, without a Python object for each."""
        span = self._spans[key]
        if span.kind != _ARRAY or span.item == _STRING:
            self.fail(f"{key} is no array of numbers")
        if span.count * _SIZES[span.item] > MAX_ARRAY_BYTES:
            self.fail(f"{key} has {span.count} values, which is more than any model needs")
        return self._numbers(span.item, span.at, span.count)

    def fail(self, what: str) -> NoReturn:
        what = what if len(what) <= 300 else what[:300] + "..."
        raise CheckpointError(f"{self.path} is not a sound GGUF file: {what}. Download or convert it again.")

    def length(self, key: str) -> int | None:
        """How many values the array `key` has, or None where it is no array."""
        span = self._spans[key]
        return span.count if span.kind == _ARRAY else None

    def typed(self, key: str, kind: type, expected: str, default: Any = None) -> Any:
        """The value of `key` if it is of `kind` (a bool is no number), `default` if the file does not have it."""
        if key not in self:
            return default
        length = self.length(key)
        if length is not None and kind is not list:
            self.fail(f"{shown(key)} must be {expected}, and is an array of {length} values")
        value = self[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(f"{shown(key)} must be {expected}, and is {shown(value)}")
        return value

    def texts(self, key: str, most: int) -> list[str] | None:
        """A list of texts, no more than `most`, or None if the file does not have it."""
        if key not in self:
            return None
        span = self._spans[key]
        if span.kind != _ARRAY or (span.item != _STRING and span.count):
            self.fail(f"{shown(key)} must be a list of texts")
        if span.count > most:
            self.fail(f"{shown(key)} has {span.count} texts, and {most} are the most that there can be")
        return self._strings(key, span)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.typed(key, bool, "true or false", default))

    def text(self, key: str) -> str | None:
        value: str | None = self.typed(key, str, "a text")
        return value

    def integer(self, key: str, min: int, max: int) -> int | None:
        """A whole number of the range, or None if the file does not have it."""
        value: int | None = self.typed(key, int, "a whole number")
        if value is not None and not min <= value <= max:
            self.fail(f"{shown(key)} is {value}, and must be in {min} to {max}")
        return value

    def _numbers(self, kind: int, at: int, count: int) -> "np.ndarray[Any, Any]":
        # A copy: a view would keep the map from being closed.
        return np.frombuffer(self._data[at : at + count * _SIZES[kind]], dtype=_NUMPY[kind])

    def _text(self, key: str, at: int) -> str:
        length = struct.unpack_from("<Q", self._data, at)[0]
        if length > MAX_STRING_BYTES:
            self.fail(f"{shown(key)} is a text of {length} bytes")
        return self._decoded(key, self._data[at + 8 : at + 8 + length])

    def _decoded(self, key: str, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{shown(key)} has text that is not UTF-8 ({shown(raw[:40])})")

    def _strings(self, key: str, span: _Span) -> list[str]:
        """A vocabulary has a hundred thousand strings: the loop is flat for speed."""
        data, at, out = self._data, span.at, []
        unpack = struct.Struct("<Q").unpack_from
        try:
            for _ in range(span.count):
                length = unpack(data, at)[0]
                at += 8
                out.append(data[at : at + length].decode("utf-8"))
                at += length
        except UnicodeDecodeError:
            self.fail(f"{shown(key)}[{len(out)}] is text that is not UTF-8")
        return out


class _Reader:
    """Takes values off the file, one after the other."""

    def __init__(self, data: mmap.mmap, metadata: Metadata) -> None:
        self.data, self.fail, self.at, self.size = data, metadata.fail, 0, len(data)
        self.strings = 0

    def skip(self, count: int) -> int:
        """Go `count` bytes ahead, to where they end; the place where they begin."""
        if count > self.size - self.at:
            self.fail(f"it ends at byte {self.size}, inside a value that begins at {self.at}")
        self.at += count
        return self.at - count

    def scalar(self, code: str) -> int:
        value: int = struct.unpack_from("<" + code, self.data, self.skip(struct.calcsize("<" + code)))[0]
        return value

    def name(self, what: str) -> str:
        length, at = self.scalar("Q"), self.at
        if length > (MAX_NAME_BYTES if what == "tensor" else 0xFFFF):
            self.fail(f"the name of a {what} at byte {at} has {length} bytes")
        raw = self.data[self.skip(length) : self.at]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"the name of a {what} at byte {at} is not UTF-8 ({shown(raw[:40])})")

    def span(self, kind: int) -> _Span:
        if kind in _SIZES:
            return _Span(kind, self.skip(_SIZES[kind]))
        if kind == _STRING:
            at = self.at
            self.skip(self.scalar("Q"))
            return _Span(kind, at)
        if kind != _ARRAY:
            self.fail(f"value type {kind} at byte {self.at} is unknown")
        item, count = self.scalar("I"), self.scalar("Q")
        at = self.at
        if item in _SIZES:
            self.skip(count * _SIZES[item])
        elif item == _STRING:
            self._skip_strings(count)
        else:
            self.fail(f"an array of type {item} at byte {at} is not one that GGUF has")
        return _Span(kind, at, item, count)

    def _skip_strings(self, count: int) -> None:
        self.strings += count
        if count > self.size // 8 or self.strings > MAX_STRINGS:
            self.fail(f"it has {self.strings} texts, which is more than any model needs or than it has room for")
        data, at, last = self.data, self.at, self.size - 8
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                self.fail(f"it ends at byte {self.size}, inside a list of texts")
            at += 8 + unpack(data, at)[0]
        if at > self.size:
            self.fail(f"it ends at byte {self.size}, inside a list of texts")
        self.at = at


def read_header(path: Path) -> tuple[mmap.mmap, Metadata, list[GGUFTensor]]:
    """The file's memory map, its metadata and its tensors.

    Raises CheckpointError, naming the file and what is wrong, for anything that is not a sound GGUF.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != _MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file (it does not begin with GGUF).")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror}.") from error
    metadata = Metadata(data, path)
    reader = _Reader(data, metadata)
    reader.skip(4)
    version = reader.scalar("I")
    if version not in (2, 3):
        metadata.fail(f"version {version} is unknown (2 and 3 are read)")
    tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        metadata.fail(f"it claims {tensors} tensors and {pairs} values, which is more than any model has")
    for _ in range(pairs):
        key = reader.name("value")
        if key in metadata._spans:
            metadata.fail(f"it has {shown(key)} twice")
        metadata._spans[key] = reader.span(reader.scalar("I"))
    return data, metadata, _read_tensors(reader, metadata, tensors)


def _read_tensors(reader: _Reader, metadata: Metadata, count: int) -> list[GGUFTensor]:
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name, dims = reader.name("tensor"), reader.scalar("I")
        if dims > MAX_DIMS:
            metadata.fail(f"tensor {shown(name)} has {dims} dimensions")
        if name in described:
            metadata.fail(f"it has tensor {shown(name)} twice")
        shape = tuple(reversed([reader.scalar("Q") for _ in range(dims)]))
        described[name] = shape, reader.scalar("I"), reader.scalar("Q")
    alignment = metadata.integer("general.alignment", 8, 1 << 16) or 32
    if alignment % 8:
        metadata.fail(f"general.alignment is {alignment}, and must be a multiple of 8")
    start = -(-reader.at // alignment) * alignment
    tensors = [
        GGUFTensor(name, shape, kind, start + offset, _stored_bytes(metadata, name, shape, kind, reader.size))
        for name, (shape, kind, offset) in described.items()
    ]
    end = start
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            metadata.fail(f"tensor {shown(tensor.name)} lies over another one")
        end = tensor.offset + tensor.nbytes
        if end > reader.size:
            metadata.fail(f"it is cut short: tensor {shown(tensor.name)} reaches beyond its end")
    return tensors


def _stored_bytes(metadata: Metadata, name: str, shape: tuple[int, ...], kind: int, size: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        metadata.fail(f"tensor {shown(name)} has the unknown type {kind}")
    values = math.prod(shape)
    if not 0 < values <= size * block or (shape[-1] if shape else 1) % block:
        metadata.fail(f"tensor {shown(name)} has the impossible shape {list(shape)}")
    stored: int = values // block * block_bytes
    return stored
