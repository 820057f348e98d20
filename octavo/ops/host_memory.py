"""Memory on a CPU: how much is free, and large pages for what stays there, weights and caches.

Address translations of 4 KiB pages cost more than the reading where a step goes through all weights once. Pages are
taken when they are first written, and are zero before.
"""

import contextlib
import ctypes
import mmap
import platform
import sys
import threading
import weakref
from collections.abc import Collection
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

ALIGNMENT = 64
CHUNK = 64 << 20
"""Bytes of a mapping that weights and caches share."""
LARGE_PAGE = 2 << 20
CACHE_SHARE = 0.6
"""Of the free memory, what caches take by default at most. Pages are touched only as they fill."""


class Arena:
    """Buffers one after the other in shared mappings, each of which stays as long as any of its buffers.

    Args:
        chunk: bytes that small buffers share a mapping of.
    """

    def __init__(self, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._memory: mmap.mmap | None = None
        self._start = 0
        self._lock = threading.Lock()

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros whose pages the system provides when they are first written.

        Those at the beginning are small: for a short text, two caches of each of 22 layers would take 90 MB otherwise.
        That costs a context of 4,000 tokens, 90 MB that are read in each step, half a millisecond.
        """
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.bytes(count, LARGE_PAGE).view(dtype).view(shape) if count else torch.zeros(shape, dtype=dtype)

    def bytes(self, size: int, small: int = 0) -> Tensor:
        """[size] uint8, zero; so many bytes at the beginning of what has a mapping of its own are in `small` pages."""
        with self._lock:
            if self._memory is None or self._start + size > len(self._memory):
                self._memory, self._start = _mapping(max(size, self._chunk), small), 0
            buffer = torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=self._start)
            self._start += -(-size // ALIGNMENT) * ALIGNMENT
        return buffer


_mapped = 0
"""Bytes of files that are read all the time. The system calls their memory free, since it could read them again."""


def count_mapped(file: mmap.mmap) -> None:
    """Take a mapped file's bytes for used memory as long as it is mapped: weights, which every step reads."""
    global _mapped
    _mapped += len(file)
    weakref.finalize(file, _forget, len(file))


def _forget(size: int) -> None:
    global _mapped
    _mapped -= size


GROUPS = (
    ("", Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    ("memory", Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Of both versions of control groups: the controller, where groups are, a group's limit, what it uses, and what stands
before names of its statistics that include groups below."""


def available() -> int:
    """Bytes that are free, also within this process's control groups. What the system keeps of files is free."""
    free = int(psutil.virtual_memory().available)
    for controller, root, limit, used, before in GROUPS:
        for group in _own_groups(controller, root):
            try:
                most = int((group / limit).read_text())
                taken = int((group / used).read_text())
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such control group, or no limit ("max")
                continue
            kept = sum(int(statistics.get(f"{before}{name}_file", 0)) for name in ("active", "inactive"))
            free = min(free, most - taken + kept)
    return max(0, free - _mapped)


def _own_groups(controller: str, root: Path, own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """This process's control group of a controller, and those that it lies in."""
    groups = [root]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                for name in Path(path).parts[1:]:
                    groups.append(groups[-1] / name)
    return groups


def give_back() -> None:
    """Let the system have what was freed: the C library keeps it for later otherwise."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget(buffer: Tensor) -> None:
    """Have the system take the whole pages of an Arena's buffer back, which are zero at the same place from now on.

    Only Linux does so; elsewhere, and on other devices, the buffer stays as it is.
    """
    if buffer.device.type != "cpu" or sys.platform != "linux":
        return
    first = -(-buffer.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (buffer.data_ptr() + buffer.numel() * buffer.element_size() - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


MBIND = {"x86_64": 237, "aarch64": 235}
"""The number of the system call, by machine."""
INTERLEAVED = 3


def interleave(buffer: Tensor, nodes: Collection[int]) -> bool:
    """Have whole pages of a buffer that nobody has written yet be taken of NUMA nodes in turn.

    Returns whether the system does so. Where not, as in containers that may not ask, who writes a page first decides.
    """
    number = MBIND.get(platform.machine()) if sys.platform == "linux" else None
    first = -(-buffer.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (buffer.data_ptr() + buffer.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if number is None or size <= 0:
        return False
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (max(nodes) // bits + 1))()
    for node in nodes:
        mask[node // bits] |= 1 << node % bits
    arguments = (first, size, INTERLEAVED, ctypes.addressof(mask), len(mask) * bits + 1, 0)
    return int(ctypes.CDLL(None).syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))) == 0


def read_as_asked(buffer: Tensor) -> None:
    """Have the system read of a buffer in a mapped file what is asked for, and nothing around it."""
    if sys.platform != "win32" and hasattr(mmap, "MADV_RANDOM"):
        first = buffer.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = buffer.data_ptr() + buffer.numel() * buffer.element_size() - first
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_RANDOM)


def _mapping(size: int, small: int) -> mmap.mmap:
    size = -(-size // LARGE_PAGE) * LARGE_PAGE
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Private to this process: memory that could be shared is not given large pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # from a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE, small)
    return memory
