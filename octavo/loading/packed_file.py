"""The file of packed weights: each lies where a page begins, so that it is computed with where the file is mapped.

A line, where the header lies with its size and digest, the packed weights, and the header, which is JSON: what the
weights were made of, and where each of them is. The header comes last, so that weights are written as they are packed.
"""

import contextlib
import hashlib
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from octavo.ops import PackedRows
from octavo.ops.weight_kinds import WeightKind

MAGIC = b"octavo packed weights, 2\n"
PARTIAL = ".partial"
"""What the name of a file ends with that is not whole yet."""
ALIGNMENT = 4096
MAX_HEADER = 64 << 20
REGION = 1 << 30
"""Bytes of a file that is being written that are mapped at a time."""
WRITTEN_MOST = 256 << 20
"""Bytes that the disk may be behind, so that memory is not full of what it has not written yet."""
UNRESERVED = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE: a mapping that is larger than memory is not refused."""

Weights = dict[str, tuple[list[PackedRows], int]]
"""By path, and the bytes that each takes as a checkpoint stores it."""


class PackedFile:
    """A file that is being written, under a name of its own until `move` gives it another.

    Args:
        folder: where it lies.
        is_mapped: what is written is computed with, where it is mapped.

    Raises OSError where it cannot be written.
    """

    def __init__(self, folder: Path, is_mapped: bool = False) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL, delete=False)  # noqa: SIM115
        self._is_mapped, self._region, self._region_at = is_mapped, mmap.mmap(-1, 1), 0
        self._at, self._unwritten, self._listed = ALIGNMENT, 0, dict[str, Any]()

    @property
    def size(self) -> int:
        """Bytes of what is written."""
        return self._at

    def put(self, path: str, parts: Sequence[PackedRows], size: int) -> list[PackedRows]:
        """Write one weight. Returns it as it is mapped, where it is; as it was given otherwise."""
        rows, mapped = list[list[Any]](), list[PackedRows]()
        for part in parts:
            at, data = self._append(part.data)
            order = None if part.order is None else self._append(part.order)[0]
            checked = [_sum(part.data), None if part.order is None else _sum(part.order)]
            rows.append([int(part.kind), part.outputs, part.width, at, part.data.nbytes, part.fine, order, *checked])
            mapped.append(PackedRows(part.kind, part.outputs, part.width, data, part.fine, part.order, self._is_mapped))
        self._listed[path] = (rows, size)
        return mapped

    def _append(self, data: Tensor) -> tuple[int, Tensor]:
        size, end = data.nbytes, self._region_at + len(self._region)
        if self._is_mapped and (self._region_at == 0 or self._at + size > end):
            self._region_at, length = self._at, max(REGION, -(-size // ALIGNMENT) * ALIGNMENT)
            os.ftruncate(self._file.fileno(), self._at + length)
            self._region = mapped(self._file, length, self._at)
        at = self._at
        self._file.seek(at)
        self._file.write(data.numpy().data.cast("B"))
        self._file.flush()
        self._at += -(-size // ALIGNMENT) * ALIGNMENT
        self._unwritten += size
        if self._is_mapped and self._unwritten > WRITTEN_MOST:
            os.fsync(self._file.fileno())
            self._unwritten = 0
        if self._is_mapped:
            data = torch.frombuffer(self._region, dtype=torch.uint8, count=size, offset=at - self._region_at)
        return at, data

    def move(self, target: Path, key: str) -> None:
        """Complete the file, and give it its name."""
        header = json.dumps({"key": key, "weights": self._listed}).encode()
        self._file.seek(self._at)
        self._file.write(header)
        self._file.truncate()
        self._file.seek(0)
        digest = hashlib.blake2b(header, digest_size=32).digest()
        self._file.write(MAGIC + self._at.to_bytes(8, "little") + len(header).to_bytes(8, "little") + digest)
        self._file.flush()
        if self._is_mapped:  # a later start does not look at all of it
            os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, target)

    def remove(self) -> None:
        """Take the name away: what is mapped of the file stays as long as it is used."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._file.name)


def mapped(file: IO[bytes], size: int, offset: int = 0) -> mmap.mmap:
    """A file's bytes, which are read when they are needed; what is written there stays in this process."""
    if sys.platform == "win32":
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=offset)
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | UNRESERVED
    return mmap.mmap(file.fileno(), size, flags=flags, prot=access, offset=offset)


def read_packed(file: IO[bytes], key: str, on_disk: Callable[[str], bool]) -> tuple[Weights, mmap.mmap]:
    """The weights of a file that was written for `key`, and its map.

    Args:
        on_disk: of which paths weights are left there, and not looked at now.

    Raises ValueError, OSError, and what JSON of another make raises, for what is no sound file of that key.
    """
    header, data = _opened(file, key)
    return _weights(header["weights"], data, on_disk), data


def _opened(file: IO[bytes], key: str) -> tuple[dict[str, Any], mmap.mmap]:
    state = os.fstat(file.fileno())
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise ValueError("others may have written it")
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as a copy does")
    at, size = (int.from_bytes(file.read(8), "little") for _ in range(2))
    digest, text = file.read(32), b""
    if size <= MAX_HEADER and at + size == state.st_size:
        file.seek(at)
        text = file.read(size)
    if hashlib.blake2b(text, digest_size=32).digest() != digest:
        raise ValueError("it is cut short, or its header is damaged")
    header: dict[str, Any] = json.loads(text)
    if header["key"] != key:
        raise ValueError("it is of something else")
    return header, mapped(file, state.st_size)


def _weights(listed: Mapping[str, Any], data: mmap.mmap, on_disk: Callable[[str], bool]) -> Weights:
    def tensor(at: int, size: int) -> Tensor:
        return torch.frombuffer(data, dtype=torch.uint8, count=size, offset=at)

    def rows(path: str, part: list[Any]) -> PackedRows:
        kind, outputs, width, at, size, fine, order_at, _, order_sum = part
        order = None
        if order_at is not None:  # the core would read beyond rows by one that is damaged
            order = tensor(order_at, width * 4).view(torch.int32).clone()
            if _sum(order) != order_sum:
                raise ValueError("an order of columns in it is damaged")
        return PackedRows(WeightKind(kind), outputs, width, tensor(at, size), fine, order, on_disk(path))

    looked_at = [part for path, (parts, _) in listed.items() if not on_disk(path) for part in parts]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # which takes the pages, too
        sums = pool.map(lambda part: _sum(tensor(part[3], part[4])), looked_at)
        if any(found != part[7] for found, part in zip(sums, looked_at, strict=True)):
            raise ValueError("a weight in it is damaged")
    return {path: ([rows(path, part) for part in parts], size) for path, (parts, size) in listed.items()}


def _sum(tensor: Tensor) -> int:
    """Of the bytes, eight at a time."""
    values = tensor.numpy().view(np.uint8)
    whole = len(values) // 8 * 8
    return (int(values[:whole].view(np.uint64).sum(dtype=np.uint64)) + int(values[whole:].sum(dtype=np.uint64))) % 2**64
