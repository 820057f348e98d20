"""Ranks of one machine in the memory that they share: large and small, recorded, and with one that does not come."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from octavo.errors import RankError
from octavo.ops import Backend, RankLink, RankPlace
from octavo.ops.native import Library, NativeBackend, runnable
from octavo.ops.native.recording import record
from octavo.rank_memory import RANK_BUFFER, RANK_RING, Waiting, abort, shared_memory, waiting_ranks
from tests.ops.rank_processes import PATIENCE, RankProcesses, run_ranks

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=dict.fromkeys((*runnable()[:1], *runnable()[-1:])))  # the best, and the simplest
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.param} memory"


def rows_of(rank: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    numbers = torch.Generator().manual_seed(rank * 1000 + width)
    return (torch.randn(rows, width, generator=numbers) * 10 ** (rank % 3)).to(dtype)


def shapes_of(seed: int) -> list[tuple[int, int, torch.dtype]]:
    """Around the sizes where sums are shared out, and where they take several buffers."""
    random = Random(seed)
    edges = [1, 16, 4096, 8192, 16384, RANK_BUFFER // 4, RANK_BUFFER // 2, RANK_BUFFER]
    sizes = [max(1, random.choice(edges) + random.randint(-17, 17)) for _ in range(12)]
    return [(rows := random.choice([1, 2, 7]), -(-size // rows), random.choice(DTYPES)) for size in sizes]


def meets(backend: Backend, seed: int) -> None:
    """Whether everything is as it should be, with one thread and with two."""
    place = backend.place
    for number, (rows, width, dtype) in enumerate(shapes_of(seed)):
        backend.set_threads(1 + number % 2)
        everyone = [rows_of(rank, rows, width, dtype) for rank in range(place.size)]
        total = everyone[0].float()
        for other in everyone[1:]:
            total = total + other.float()
        assert torch.equal(backend.all_reduce(everyone[place.rank].clone()), total.to(dtype)), (rows, width, dtype)
        widths = [width + 3 * rank for rank in range(place.size)]
        parts = [rows_of(rank, rows, w, dtype) for rank, w in enumerate(widths)]
        assert torch.equal(backend.all_gather(parts[place.rank], widths), torch.cat(parts, dim=1))
        numbers = [place.rank * i - 50 for i in range(number * 20)]
        assert backend.least(numbers) == [-50] * len(numbers)


@pytest.mark.parametrize(("size", "seed"), [(2, 1), (3, 2), (5, 3)])
def test_sizes(name: str, size: int, seed: int, tmp_path: Path) -> None:
    run_ranks(name, (size, size), tmp_path, meets, seed)


def rows_alone(backend: Backend) -> None:
    x = rows_of(backend.place.rank, 300, 2048, torch.bfloat16)
    together = backend.all_reduce(x.clone())
    for first, last in ((0, 1), (17, 20), (255, 300)):
        assert torch.equal(backend.all_reduce(x[first:last].clone()), together[first:last])
    assert torch.equal(backend.all_reduce(x[:, 7:1000]), together[:, 7:1000])  # rows that lie apart


def test_a_rows_bits_are_its_own(name: str, tmp_path: Path) -> None:
    run_ranks(name, (3, 3), tmp_path, rows_alone)


def more_than_there_is_room_for(backend: Backend) -> None:
    rows, width = RANK_RING // 4096 + 100, 1024
    for number in range(3):
        x = rows_of(number, rows, width, torch.float32)
        if backend.place.is_first_stage:
            backend.send(x)
            backend.send(x[:1])
        else:
            assert torch.equal(backend.receive(rows, width, torch.float32), x)
            assert torch.equal(backend.receive(1, width, torch.float32), x[:1])


def test_streams_larger_than_their_ring(name: str, tmp_path: Path) -> None:
    run_ranks(name, (2, 1), tmp_path, more_than_there_is_room_for)


# ---- recorded steps --------------------------------------------------------------------------------------------------


def recorded(backend: NativeBackend) -> None:
    place, rows = backend.place, 40
    x = torch.zeros(rows, 300)

    def step() -> tuple[Tensor, ...]:
        if not place.is_first_stage:
            return (backend.receive(rows, 700, torch.float32),)
        y = backend.all_gather(backend.all_reduce(backend.scale(x, 2.0)), [300, 300])
        y = torch.cat([y, y[:, :100]], dim=1)  # computed by PyTorch, between two runs of the core's operations
        backend.send(y)
        return (y,)

    program = record(backend.library, step, rows)
    for count in (1, 40, 7):
        parts = [rows_of(rank, rows, 300, torch.float32) for rank in (0, 1)]
        x.copy_(parts[place.tensor_rank])
        total = (parts[0] * 2.0 + parts[1] * 2.0)[:count]
        assert torch.equal(program.run(count)[0], torch.cat([total, total, total[:, :100]], dim=1))


def test_recorded_steps(name: str, tmp_path: Path) -> None:
    run_ranks(name, (4, 2), tmp_path, recorded)


def recorded_alone(backend: NativeBackend) -> float:
    x, count = torch.zeros(1, 300), torch.zeros(1, 1)

    def step() -> tuple[Tensor, ...]:
        y = backend.all_reduce(x)
        count.add_(1)  # of PyTorch's
        return (backend.add(y, y),)

    program = record(backend.library, step, 1)
    program.run(1)
    if backend.place.rank == 0:
        with pytest.raises(RankError, match="all_reduce on rank 0 of 2: rank 1 is gone"):
            program.run(1)
        with pytest.raises(RankError, match="rank 1"):  # and so does all that comes after
            backend.all_reduce(x)
        with pytest.raises(RankError, match="rank 1"):
            program.run(1)
    return count.item()


def test_a_recorded_step_stops_where_a_rank_is_missing(name: str, tmp_path: Path) -> None:
    with RankProcesses(name, (2, 2), tmp_path, recorded_alone) as ranks:
        assert ranks.results() == [1.0, 1.0]


# ---- ranks that do not come ------------------------------------------------------------------------------------------


def stops(backend: Backend, signal_number: int) -> None:
    backend.all_reduce(torch.zeros(1, 8))
    if backend.place.rank == 1:
        os.kill(os.getpid(), signal_number)
    backend.all_reduce(torch.zeros(200, 2048))


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_hangs(name: str, size: int, tmp_path: Path) -> None:
    with RankProcesses(
        name, (size, size), tmp_path, partial(stops, signal_number=signal.SIGSTOP), timeout=2.0
    ) as ranks:
        for rank in {*range(size)} - {1}:
            with pytest.raises(RankError, match=rf"all_reduce on rank {rank} of {size}: rank 1 ") as failed:
                ranks.result(rank)
            assert failed.value.rank == 1


def test_a_rank_that_is_killed(name: str, tmp_path: Path) -> None:
    """The others notice by themselves, long before they lose patience."""
    with RankProcesses(name, (3, 3), tmp_path, partial(stops, signal_number=signal.SIGKILL)) as ranks:
        for rank in (0, 2):
            with pytest.raises(RankError, match=rf"all_reduce on rank {rank} of 3: rank 1 is (gone|missing)") as failed:
                ranks.result(rank)
            assert failed.value.rank == 1


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def waits(backend: Backend) -> None:
    if backend.place.rank != 1:
        backend.receive(1, 4, torch.float32) if backend.place.rank == 2 else backend.all_reduce(torch.zeros(1, 8))
    signal.pause()


@pytest.mark.parametrize("missing", [None, 1])
def test_who_starts_ranks_sees_who_waits_and_ends_it(name: str, missing: int | None, tmp_path: Path) -> None:
    with RankProcesses(name, (4, 2), tmp_path, waits) as ranks:
        memory = ranks.memory
        assert memory is not None
        expected = [Waiting(0, "all_reduce", 1), Waiting(2, "receive", 0), Waiting(3, "all_reduce", 2)]
        until(lambda: waiting_ranks(memory) == expected)
        abort(memory, missing)
        for rank in (0, 2, 3):
            with pytest.raises(RankError, match="rank 1 is missing" if missing else "a rank is missing") as failed:
                ranks.result(rank)
            assert failed.value.rank == missing


def test_ranks_that_cannot_join(name: str) -> None:
    backend = NativeBackend(Library(name.split()[0]))
    with pytest.raises(ValueError, match="is no memory for 3 ranks"):
        backend.join(RankPlace(1, 3, 3), RankLink(shared_memory(1)))
    with pytest.raises(RankError, match=r"join on rank 1 of 2: rank 0 did not come within 0\.2 s"):
        backend.join(RankPlace(1, 2, 2), RankLink(shared_memory(2), timeout=0.02))
    x = torch.ones(1, 8)  # it goes on by itself
    program = record(backend.library, lambda: (backend.add(x, x),), 1)
    assert torch.equal(program.run(1)[0], x + x)
    assert backend.place == RankPlace()
    assert backend.least([1]) == [1]
