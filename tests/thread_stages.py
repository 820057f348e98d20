"""Stages whose ranks are threads of this process, of which one computes at a time: they start at once."""

import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.executor import rank_executor
from octavo.executor.process import Load
from octavo.executor.process_worker import Worker
from octavo.executor.rank_executor import RankExecutor
from octavo.ops.native import NativeBackend
from octavo.ops.recordable import NotRecordableError
from octavo.rank_place import RankLink, RankPlace

PATIENCE = 60
"""Seconds that a rank waits for another."""
_COMPUTES = threading.Lock()
_numbers = itertools.count()
_groups: dict[str, "ThreadStages"] = {}


class _Meets:
    """In place of the core's operations in which ranks meet; one rank a stage."""

    _place = RankPlace()
    _address = ""

    def join(self, place: RankPlace, link: RankLink) -> None:
        assert place.tensor_size == 1
        self._place, self._address = place, str(link.address)

    def send(self, x: Tensor) -> None:
        self._group().ways[self._place.rank + 1].put(x.clone())

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        x: Tensor = _wait(self._group().ways[self._place.rank])
        assert (tuple(x.shape), x.dtype) == ((rows, width), dtype)
        return x

    def least(self, values: Sequence[int]) -> list[int]:
        if self._place.size == 1:
            return list(values)
        ranks, group = range(self._place.size), self._group()
        for rank in ranks:
            group.told[self._place.rank, rank].put(list(values))
        return [min(each) for each in zip(*(_wait(group.told[rank, self._place.rank]) for rank in ranks), strict=True)]

    def _group(self) -> "ThreadStages":
        if self.library.is_recording:  # type: ignore[attr-defined]
            raise NotRecordableError("ranks are threads")
        return _groups[self._address]


def _wait(way: "queue.Queue[object]") -> object:
    """What comes; others compute meanwhile."""
    _COMPUTES.release()
    try:
        return way.get(timeout=PATIENCE)
    finally:
        _COMPUTES.acquire()


class ThreadStages:
    """A RankGroup of `size` stages."""

    def __init__(self, size: int) -> None:
        self.size, self.address = size, str(next(_numbers))
        self.ways = defaultdict[int, "queue.Queue[object]"](queue.Queue)
        self.told = defaultdict[tuple[int, int], "queue.Queue[object]"](queue.Queue)
        _groups[self.address] = self
        self._messages = [queue.SimpleQueue[bytes | None]() for _ in range(size)]
        self._replies: queue.Queue[tuple[int, bytes | None]] = queue.Queue()
        for rank in range(size):
            threading.Thread(target=self._answer, args=(rank,), daemon=True).start()

    def _answer(self, rank: int) -> None:
        worker = Worker()
        while (message := self._messages[rank].get()) is not None:
            with _COMPUTES:
                reply = worker.answer(message)
            self._replies.put((rank, reply))

    def loads(self, args: EngineArgs) -> list[Load]:
        link = RankLink(address=self.address)
        return [Load.of(args, RankPlace(rank, self.size), link) for rank in range(self.size)]

    def send(self, rank: int, message: bytes) -> None:
        self._messages[rank].put(message)

    def receive(self, timeout: float | None) -> list[tuple[int, bytes | None]]:
        try:
            return [self._replies.get(timeout=PATIENCE if timeout is None else timeout)]
        except queue.Empty:
            return []

    def end_of(self, rank: int) -> str:
        return "has ended"

    def close(self) -> None:
        for messages in self._messages:
            messages.put(None)
        _groups.pop(self.address, None)


@contextmanager
def stages_are_threads() -> Iterator[None]:
    """Engines with pipeline_parallel_size that are made meanwhile have such ranks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("join", "send", "receive", "least", "_group"):
            patch.setattr(NativeBackend, name, vars(_Meets)[name], raising=False)
        patch.setattr(rank_executor, "load_ranks", lambda args: RankExecutor(ThreadStages(args.num_ranks), args))
        yield
