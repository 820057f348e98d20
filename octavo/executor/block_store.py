"""Blocks of one rank's KV cache on their way out and back: copied between steps, written and read beside them.

A step copies the blocks that it is told to save, as many as there is room for in a queue of bounded size; a thread
writes them. What is asked for is looked up and read by other threads, straight into blocks of the cache that nobody
else uses meanwhile. So a step never waits for a disk.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.errors import failure
from octavo.executor.block_tiers import Tier
from octavo.executor.store_messages import StoredBlock, StoreNews, StoreTask, StoreWork

log = logging.getLogger("octavo")

QUEUE = 256 << 20
"""Bytes of blocks that may wait to be written."""
BATCH = 8 << 20
"""Bytes that are read at a time, before they go to their places together."""
PATIENCE = 0.05
"""Seconds that a step without sequences waits for an answer."""
LAST_WRITES = 20.0
"""Seconds that blocks may still be written in when the engine ends."""


@dataclass(frozen=True)
class GroupBytes:
    """The caches of a group's layers as bytes."""

    tensors: Sequence[Tensor]
    """[blocks, bytes of a block] uint8 each."""

    @property
    def size(self) -> int:
        """Bytes of a block, of all layers together."""
        return sum(tensor.shape[1] for tensor in self.tensors)

    def copied(self, blocks: Sequence[int]) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
        """[blocks, size] in host memory."""
        out = np.empty((len(blocks), self.size), np.uint8)
        places, at = torch.tensor(blocks), 0
        for tensor in self.tensors:
            end = at + tensor.shape[1]
            out[:, at:end] = tensor[places.to(tensor.device)].cpu().numpy()
            at = end
        return out

    def put(self, blocks: Sequence[int], rows: "np.ndarray[tuple[int, int], np.dtype[np.uint8]]") -> None:
        """Write rows `[blocks, size]` to these blocks. The whole of it is there when this returns."""
        at = 0
        for tensor in self.tensors:
            end = at + tensor.shape[1]
            if tensor.device.type == "cpu":  # by numpy, which brings no threads that the model's would have to meet
                tensor.numpy()[np.array(blocks)] = rows[:, at:end]
            else:
                part = torch.from_numpy(np.ascontiguousarray(rows[:, at:end]))
                tensor[torch.tensor(blocks, device=tensor.device)] = part.to(tensor.device)
            at = end
        if self.tensors and self.tensors[0].device.type == "cuda":
            torch.cuda.current_stream(self.tensors[0].device).synchronize()  # not the device: a step may be recorded


class BlockStore:
    """A rank's blocks outside of its caches.

    Args:
        groups: its caches, by group of layers. A group of which it has no layers has no bytes, and is always there.
        of: a digest of all that bytes depend on, beside a block's own key.
        tiers: where blocks are, the fastest first.
    """

    def __init__(self, groups: Sequence[GroupBytes], of: bytes, tiers: Sequence[Tier]) -> None:
        self._groups, self._of, self._tiers = groups, of, tiers
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="octavo-kv-write")
        self._finder = ThreadPoolExecutor(1, thread_name_prefix="octavo-kv-find")
        self._reader = ThreadPoolExecutor(2, thread_name_prefix="octavo-kv-read")
        self._lock = threading.Condition()
        self._news = StoreNews()
        self._queued = self._working = 0
        self._closed = False

    def begin(self, work: StoreWork) -> None:
        """Copy what is to be saved, and have the rest done."""
        for group in range(len(self._groups)):
            self._save(group, [(place, block) for place, block in work.saves if block.group == group])
        for task in work.tasks:
            with self._lock:
                self._working += task.ticket != 0
            pool, do = (self._reader, self._load) if task.places else (self._finder, self._find)
            pool.submit(self._answer, task, do)

    def news(self, is_idle: bool) -> StoreNews:
        """What has become of work since the last call; where the rank `is_idle`, this waits shortly for an answer."""
        with self._lock:
            if is_idle and self._working:
                self._lock.wait_for(lambda: bool(self._news.answers), PATIENCE)
            news, self._news = self._news, StoreNews()
            self._working -= len(news.answers)
        return news

    def close(self) -> None:
        """End the threads; what waits to be written has some seconds for it."""
        with self._lock:
            self._lock.wait_for(lambda: not self._queued, LAST_WRITES)
            self._closed = True
        for pool in (self._writer, self._finder, self._reader):
            pool.shutdown(wait=True, cancel_futures=True)

    def _save(self, group: int, saves: list[tuple[int, StoredBlock]]) -> None:
        size = self._groups[group].size
        if not saves or not size:
            return
        with self._lock:
            room = max(0, QUEUE - self._queued) // size or int(not self._queued)
            self._news.unsaved += saves[room:]
            saves = saves[:room]
            self._queued += len(saves) * size
        if saves:
            try:
                rows = self._groups[group].copied([place for place, _ in saves])
                self._writer.submit(self._write, [block for _, block in saves], rows)
            except BaseException as error:  # no memory: they are not kept
                failure(error)
                self._written(len(saves) * size, 0)

    def _write(self, blocks: list[StoredBlock], rows: "np.ndarray[tuple[int, int], np.dtype[np.uint8]]") -> None:
        for block, row in zip(blocks, rows, strict=True):
            stored = 0
            try:
                for tier in self._tiers if not self._closed else ():
                    stored += tier.write(self._name(block), block.depth, memoryview(row.data))
            except BaseException as error:
                failure(error)
            self._written(len(row), stored)

    def _written(self, size: int, stored: int) -> None:
        with self._lock:
            self._queued -= size
            self._news.stored_bytes += stored
            self._lock.notify_all()

    def _answer(self, task: StoreTask, do: Callable[[StoreTask], bytes]) -> None:
        answer = bytes(len(task.blocks))
        try:
            answer = do(task)
        except BaseException as error:  # then they are computed
            failure(error)
        with self._lock:
            if task.ticket:
                self._news.answers.append((task.ticket, answer))
            self._lock.notify_all()

    def _find(self, task: StoreTask) -> bytes:
        return bytes(
            not self._groups[block.group].size or any(tier.has(self._name(block), block.depth) for tier in self._tiers)
            for block in task.blocks
        )

    def _load(self, task: StoreTask) -> bytes:
        there = bytearray(len(task.blocks))
        for number, group in enumerate(self._groups):
            own = [i for i, block in enumerate(task.blocks) if block.group == number]
            if not group.size:
                for i in own:
                    there[i] = 1
                continue
            count = max(1, BATCH // group.size)
            for first in range(0, len(own), count):
                self._load_some(task, own[first : first + count], group, there)
        return bytes(there)

    def _load_some(self, task: StoreTask, some: list[int], group: GroupBytes, there: bytearray) -> None:
        rows = np.empty((len(some), group.size), np.uint8)
        sound = list[int]()
        for row, i in enumerate(some):
            block = task.blocks[i]
            if any(tier.read(self._name(block), block.depth, memoryview(rows[row].data)) for tier in self._tiers):
                sound.append(row)
        if self._closed or not sound:
            return
        group.put([task.places[some[row]] for row in sound], rows if len(sound) == len(some) else rows[sound])
        for row in sound:
            there[some[row]] = 1
        with self._lock:
            self._news.loaded_bytes += len(sound) * group.size

    def _name(self, block: StoredBlock) -> bytes:
        return hashlib.blake2b(
            self._of + block.group.to_bytes(4, "little") + block.key, digest_size=32, person=b"octavo kv block"
        ).digest()


class NoStore:
    """Of a rank that cannot have a store: nothing is there, and nothing is kept."""

    def __init__(self) -> None:
        self._news = StoreNews()

    def begin(self, work: StoreWork) -> None:
        self._news.answers += [(task.ticket, bytes(len(task.blocks))) for task in work.tasks if task.ticket]

    def news(self, is_idle: bool) -> StoreNews:
        news, self._news = self._news, StoreNews()
        return news

    def close(self) -> None:
        """There is nothing to end."""
