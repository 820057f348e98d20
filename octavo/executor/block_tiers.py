"""Where blocks of the KV cache are kept outside of it: host memory, and a folder of files.

A file has one block of one rank: a line, its name, its size, a sum over these and the bytes, and the bytes. The name is
a digest of all that the bytes depend on, and is the file's name too. A file is written beside its place and moved there
when it is whole; what is not as it should be is not used, and deleted. Only files with such names are touched, no link
is followed, and nothing of a file decides what is read or where.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import struct
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from octavo.sizes import format_size

log = logging.getLogger("octavo")

MAGIC = b"octavo kv block, 1\n"
HEADER = struct.Struct(f"<{len(MAGIC)}s32sQ32s")
"""The line, the name, the size, the sum."""
ENDING, PARTIAL, BEGINNING = ".kv", ".partial", "kv-"
OWN = re.compile(rf"[0-9a-f]{{64}}\{ENDING}")
UNFINISHED = re.compile(rf"{BEGINNING}[a-z0-9_]+\{PARTIAL}")
ABANDONED = 3600.0
"""Seconds after which a file that is being written is taken for one whose process has ended."""
NO_FILE = (errno.ELOOP, errno.EMLINK, errno.ENXIO)
"""What opening a link or a socket gives."""
MINUTE = 60 * 10**9
PAGE = 4096


class Tier(Protocol):
    """A place for blocks. Any thread may call it; nothing here raises."""

    def has(self, name: bytes, depth: int) -> bool:
        """Whether a block is there, as far as can be said without reading it; it counts as used now."""

    def read(self, name: bytes, depth: int, into: memoryview) -> bool:
        """Read a block of exactly that size; False where there is no sound one."""

    def write(self, name: bytes, depth: int, data: memoryview) -> int:
        """Keep a block, if it is not there already; how many bytes were written."""


class HostTier:
    """Blocks in memory, the least recently used of which make room.

    Args:
        limit: bytes that all may take.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._size, self._lock = limit, 0, threading.Lock()
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()

    def has(self, name: bytes, depth: int) -> bool:
        with self._lock:
            if name not in self._blocks:
                return False
            self._blocks.move_to_end(name)
            return True

    def read(self, name: bytes, depth: int, into: memoryview) -> bool:
        with self._lock:
            data = self._blocks.get(name)
        if data is None or len(data) != len(into):
            return False
        into[:] = data
        return True

    def write(self, name: bytes, depth: int, data: memoryview) -> int:
        if len(data) > self._limit or self.has(name, depth):
            return 0
        kept = bytes(data)
        with self._lock:
            self._blocks[name] = kept
            self._size += len(kept)
            while self._size > self._limit:
                self._size -= len(self._blocks.popitem(last=False)[1])
        return len(kept)


class DiskTier:
    """Blocks as files in a folder, which several processes may share.

    Args:
        folder: where they are. It is made where it is missing.
        limit: bytes that all files in it may take, whoever wrote them.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit
        self._writes, self._warned = True, False
        self._since_look = limit
        """Bytes written since the folder was last looked through."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._stop(error)

    def has(self, name: bytes, depth: int) -> bool:
        try:  # one call to the system says whether it is there, and that it is used
            os.utime(self._path(name), ns=_stamp(depth), follow_symlinks=False)
        except OSError as error:
            return error.errno in (errno.EROFS, errno.EPERM, errno.EACCES) and self._path(name).is_file()
        return True

    def read(self, name: bytes, depth: int, into: memoryview) -> bool:
        path = self._path(name)
        try:
            handle = os.open(path, os.O_RDONLY | _CAREFUL)
        except OSError as error:
            return error.errno in NO_FILE and self._discard(path, error)
        try:
            with open(handle, "rb", buffering=0) as file:
                _read_block(file.fileno(), name, into)
        except (OSError, ValueError) as error:
            return self._discard(path, error)
        return True

    def write(self, name: bytes, depth: int, data: memoryview) -> int:
        if not self._writes or self.has(name, depth):
            return 0
        size = HEADER.size + len(data)
        try:
            self._since_look += _rounded(size)
            if self._since_look > self._limit >> 6:
                self._make_room(_rounded(size))
            if _rounded(size) > self._limit:
                return 0
            try:
                self._write(name, depth, data)
            except FileNotFoundError:  # somebody has deleted the folder
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(name, depth, data)
        except OSError as error:
            self._stop(error)
            return 0
        return size

    def _write(self, name: bytes, depth: int, data: memoryview) -> None:
        handle, written = tempfile.mkstemp(prefix=BEGINNING, suffix=PARTIAL, dir=self.folder)
        try:
            with open(handle, "wb", buffering=0) as file:
                header = HEADER.pack(MAGIC, name, len(data), _sum(name, data))
                for part in (memoryview(header), data):
                    while part:
                        part = part[file.write(part) :]
            os.utime(written, ns=_stamp(depth))
            os.replace(written, self._path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(written)
            raise

    def _path(self, name: bytes) -> Path:
        return self.folder / (name.hex() + ENDING)

    def _stop(self, error: OSError) -> None:
        """No block is written from now on; those that are there are still read."""
        if self._writes:
            self._writes = False
            log.warning("no more blocks of the KV cache are written to %s: %s", self.folder, error)

    def _discard(self, path: Path, error: Exception) -> bool:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if not self._warned:
            self._warned = True
            log.warning("%s is not used, and deleted, as others like it are: %s", path, error)
        return False

    def _make_room(self, size: int) -> None:
        """Delete the least recently used until another `size` bytes fit, with room for what others write meanwhile."""
        found = list[tuple[int, int, str]]()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if OWN.fullmatch(entry.name):
                        state = entry.stat(follow_symlinks=False)
                        found.append((state.st_mtime_ns, _rounded(state.st_size), entry.path))
                    elif UNFINISHED.fullmatch(entry.name) and _age(entry) > ABANDONED:
                        os.unlink(entry.path)
        total = size + sum(each[1] for each in found)
        if total > self._limit:
            room = self._limit - (self._limit >> 4)
            for _, freed, path in sorted(found):
                if total <= room:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    total -= freed
            log.debug("%s has %s of KV blocks", self.folder, format_size(total))
        self._since_look = size


_CAREFUL = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""No link is followed, and no FIFO waited for."""


def _age(entry: "os.DirEntry[str]") -> float:
    """Seconds since it was written."""
    return time.time() - entry.stat(follow_symlinks=False).st_mtime


def _rounded(size: int) -> int:
    """What a file takes."""
    return -(-size // PAGE) * PAGE


def _stamp(depth: int) -> tuple[int, int]:
    """The times of a file that is used now.

    Of those used in one minute the last blocks of prompts count as older: they are of no use without those before.
    """
    now = time.time_ns()
    at = now - now % MINUTE - min(depth, 10**6) * 1000
    return at, at


def _sum(name: bytes, data: memoryview) -> bytes:
    digest = hashlib.blake2b(name, digest_size=32, person=b"octavo kv file")
    digest.update(data)
    return digest.digest()


def _read_block(handle: int, name: bytes, into: memoryview) -> None:
    """Raises ValueError or OSError for what is no sound file of that block."""
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is no plain file")
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise ValueError("others may have written it")
    header = os.read(handle, HEADER.size)
    if state.st_size != HEADER.size + len(into) or len(header) < HEADER.size:
        raise ValueError("it is cut short, or too long")
    magic, named, size, digest = HEADER.unpack(header)
    if (magic, named, size) != (MAGIC, name, len(into)):
        raise ValueError("it is of something else")
    rest = into
    with open(handle, "rb", buffering=0, closefd=False) as file:
        while rest:
            if not (count := file.readinto(rest)):
                raise ValueError("it is cut short")
            rest = rest[count:]
    if _sum(name, into) != digest:
        raise ValueError("it is damaged")
