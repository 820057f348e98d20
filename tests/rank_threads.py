"""Ranks as threads of this process, which meet at barriers: for tests of what parts and engines do on several ranks."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import launch
from octavo.config import EngineArgs
from octavo.executor import adapter_slots
from octavo.loading import model as loading
from octavo.loading.model import LoadedModel, load_model
from octavo.ops import RankLink, RankPlace
from octavo.ops.torch import TorchBackend
from octavo.parts import CausalLM

PATIENCE = 120
"""Seconds that a rank waits for another."""


class ThreadPlace(RankPlace):
    """A rank that answers, as all do here: each has an engine of its own, and they do the same."""

    is_output = True  # type: ignore[assignment]


class Meeting:
    """Where the ranks of one model meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self._brought: list[Any] = [None] * size

    def exchange(self, rank: int, operation: str, x: Tensor) -> list[Tensor]:
        """What all ranks have brought. All bring the same operation, and as many rows."""
        self._brought[rank] = (operation, x)
        self.barrier.wait()
        everyone = list(self._brought)
        self.barrier.wait()
        assert {(name, len(rows), rows.dtype) for name, rows in everyone} == {(operation, len(x), x.dtype)}
        return [rows for _, rows in everyone]


class ThreadBackend(TorchBackend):
    """The reference, one rank of a meeting."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        super().__init__(torch.device("cpu"))
        self.meeting = meeting
        self.place = ThreadPlace(rank, meeting.size, meeting.size)
        self.model: CausalLM | None = None

    def join(self, place: RankPlace, link: RankLink) -> None:
        """They have met."""

    def all_reduce(self, x: Tensor) -> Tensor:
        first, *others = self.meeting.exchange(self.place.rank, "all_reduce", x)
        total = first.float()
        for other in others:
            total = total + other.float()
        return total.to(x.dtype)

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        rows = self.meeting.exchange(self.place.rank, "all_gather", x)
        assert [each.shape[1] for each in rows] == list(widths)
        return torch.cat(rows, dim=1)

    def least(self, values: Sequence[int]) -> list[int]:
        everyone = self.meeting.exchange(self.place.rank, "least", torch.tensor([list(values)]))
        return torch.cat(everyone).amin(0).tolist()


class AtOnce:
    """In the place of a pool of threads: adapters are there when they are asked for, in the engines of all ranks."""

    def __init__(self, threads: int, thread_name_prefix: str) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future = Future[Any]()
        try:
            future.set_result(function(*args))
        except Exception as error:  # which is raised for who asks
            future.set_exception(error)
        return future

    def shutdown(self, **options: bool) -> None:
        pass


def run_ranks(size: int, work: Callable[[ThreadBackend], Any]) -> list[Any]:
    """What `work` returns on each rank. Models that are loaded in it are the rank's."""
    meeting, results, errors = Meeting(size), [None] * size, list[BaseException]()
    local = threading.local()

    def run(rank: int) -> None:
        local.backend = ThreadBackend(meeting, rank)
        try:
            results[rank] = work(local.backend)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    with _loading_for(local):
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results


@contextmanager
def _loading_for(local: threading.local) -> Iterator[None]:
    def load(args: EngineArgs) -> LoadedModel:
        loaded = load_model(args, local.backend.place)
        local.backend.model = loaded.model
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "select_backend", lambda device, preference: local.backend)
        patch.setattr(launch, "load_model", load)
        patch.setattr(adapter_slots, "ThreadPoolExecutor", AtOnce)
        yield
