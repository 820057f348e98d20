"""Ranks as processes of their own, for tests."""

import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from octavo.ops import Backend, RankLink, RankPlace, select_backend
from octavo.ops.native import Library, NativeBackend

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["octavo.ops", "tests.ops.rank_processes"])
PATIENCE = 120
"""Seconds until a test has failed whose ranks give no result."""


def backend_named(name: str) -> Backend:
    return select_backend("cpu", "torch") if name == "torch" else NativeBackend(Library(name))


class RankProcesses:
    """`function(backend, *args)` in each of `size` ranks, which have joined.

    Args:
        backend: its name, or "torch".
        link: the address, or the memory.
    """

    def __init__(
        self, backend: str, size: int, tensor_size: int, link: RankLink, function: Callable[..., Any], *args: Any
    ) -> None:
        self.processes: list[ForkServerProcess] = []
        self._results: list[connection.Connection] = []
        for rank in range(size):
            mine, theirs = CONTEXT.Pipe()
            place = RankPlace(rank, size, tensor_size)
            process = CONTEXT.Process(target=_work, args=(theirs, backend, place, _carried(link), function, args))
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


def run_ranks(backend: str, place: Sequence[int], folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The function's results by rank, of ranks that meet by torch.distributed; `place` is (size, tensor size)."""
    link = RankLink(address=f"file://{folder}/ranks", timeout=PATIENCE)
    with RankProcesses(backend, *place, link, function, *args) as ranks:
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
        backend = backend_named(backend_name)
        backend.set_threads(1)
        backend.join(place, RankLink(None if memory is None else memory.detach(), address, timeout))
        results.send(("returned", function(backend, *args)))
        backend.leave()
    except Exception as error:
        error.add_note(traceback.format_exc())
        results.send(("failed", error))
    results.poll(PATIENCE)  # stays until the test has seen it: that a rank ends is a failure to the others
