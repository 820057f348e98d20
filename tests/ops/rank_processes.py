"""Ranks as processes of their own, for tests."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from octavo.ops import Backend, RankLink, RankPlace, select_backend
from octavo.ops.native import Library, NativeBackend
from octavo.rank_memory import shared_memory

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["octavo.llm", "tests.ops.rank_processes"])
PATIENCE = 120
"""Seconds until a test has failed whose ranks give no result."""


def backend_named(name: str, rank: int) -> Backend:
    if name in ("torch", "triton"):
        return select_backend("cpu", name)
    return select_backend(f"cuda:{rank}", "triton") if name == "cuda" else NativeBackend(Library(name))


class RankProcesses:
    """`function(backend, *args)` in each of `size` ranks, which have joined.

    Args:
        backend: "torch", "triton" under its interpreter, "cuda" for Triton with a GPU for each rank, or the instruction
            set of a library and how its ranks meet: "avx2 memory", "avx2 address".
        place: how many ranks in all, and for each layer.
        folder: where they may meet.
    """

    def __init__(
        self,
        backend: str,
        place: tuple[int, int],
        folder: Path,
        function: Callable[..., Any],
        *args: Any,
        timeout: float = PATIENCE,
    ) -> None:
        backend, _, meeting = backend.partition(" ")
        size, tensor_size = place
        self.memory = shared_memory(size) if meeting == "memory" else None
        link = RankLink(self.memory, None if self.memory else f"file://{folder}/ranks", timeout)
        self.processes: list[ForkServerProcess] = []
        self._results: list[connection.Connection] = []
        for rank in range(size):
            mine, theirs = CONTEXT.Pipe()
            known = (theirs, backend, RankPlace(rank, size, tensor_size), _carried(link))
            process = CONTEXT.Process(target=_work, args=(*known, function, args))
            process.start()
            theirs.close()
            self.processes.append(process)
            self._results.append(mine)

    def result(self, rank: int) -> Any:
        """What the function returned in a rank; raises what it raised there."""
        if not self._results[rank].poll(PATIENCE):
            raise TimeoutError(f"rank {rank} gives no result")
        kind, value = self._results[rank].recv()
        if kind == "failed":
            raise value
        return value

    def results(self) -> list[Any]:
        return [self.result(rank) for rank in range(len(self.processes))]

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        if self.memory is not None:
            os.close(self.memory)


def run_ranks(
    backend: str, place: tuple[int, int], folder: Path, function: Callable[..., Any], *args: Any
) -> list[Any]:
    """The function's results by rank."""
    with RankProcesses(backend, place, folder, function, *args) as ranks:
        return ranks.results()


def _carried(link: RankLink) -> tuple[Any, ...]:
    memory = None if link.memory is None else DupFd(link.memory)
    return memory, link.address, link.timeout


def _work(
    results: connection.Connection,
    backend_name: str,
    place: RankPlace,
    carried: tuple[Any, ...],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    memory, address, timeout = carried
    try:
        backend = backend_named(backend_name, place.rank)
        backend.set_threads(1)
        backend.join(place, RankLink(None if memory is None else memory.detach(), address, timeout))
        results.send(("returned", function(backend, *args)))
        backend.leave()
    except Exception as error:
        error.add_note(traceback.format_exc())
        results.send(("failed", error))
    results.poll(PATIENCE)  # stays until the test has seen it: that a rank ends is a failure to the others
