"""Operations in which ranks meet, between real processes."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.errors import EngineDeadError, RankError
from octavo.ops import Backend, RankLink, RankPlace
from octavo.ops.native import NativeBackend, runnable
from octavo.ops.torch import TorchBackend
from tests.ops.rank_processes import RankProcesses, run_ranks

BACKENDS = ["torch", *(f"{name} {meeting}" for name in runnable()[:1] for meeting in ("address", "memory"))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows_of(rank: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """A rank's, alike wherever they are made."""
    numbers = torch.Generator().manual_seed(rank)
    return (torch.randn(64, width, generator=numbers) * 10 ** (rank % 3))[:rows].to(dtype)


def expected_sum(size: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    total = rows_of(0, rows, width, dtype).float()
    for rank in range(1, size):
        total = total + rows_of(rank, rows, width, dtype).float()
    return total.to(dtype)


def test_places() -> None:
    places = [RankPlace(rank, 6, 2) for rank in range(6)]
    assert [(p.stage, p.tensor_rank) for p in places] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [p.rank for p in places if p.is_output] == [4]
    assert [p.is_first_stage for p in places].count(True) == [p.is_last_stage for p in places].count(True) == 2
    for wrong in ((2, 2, 1), (0, 3, 2), (0, 1, 0)):
        with pytest.raises(ValueError, match="no rank"):
            RankPlace(*wrong)


def test_one_rank_alone(backend: Backend) -> None:
    x = torch.randn(3, 5)
    assert backend.place == RankPlace()
    assert backend.all_reduce(x) is x
    assert backend.all_gather(x, [5]) is x
    assert backend.least([3, 1]) == [3, 1]
    backend.join(RankPlace(), RankLink())
    backend.leave()


def agreed(backend: Backend) -> str:
    if isinstance(backend, NativeBackend) and backend.place.rank == 1:
        backend.library.set_tiles(backend.library.tiles._replace(bf16=False))
    backend.agree()
    return backend.sum_order


@pytest.mark.parametrize("name", BACKENDS)
def test_ranks_agree_on_an_order_of_sums(name: str, tmp_path: Path) -> None:
    """Where there are tiles: what one of them does not take for bfloat16, none does."""
    orders = run_ranks(name, (3, 3), tmp_path, agreed)
    assert len(set(orders)) == 1
    assert "bf16" not in orders[0]


def sums(backend: Backend, shapes: list[tuple[int, int]]) -> list[Tensor]:
    rank = backend.place.tensor_rank
    return [backend.all_reduce(rows_of(rank, *shape, dtype)) for shape in shapes for dtype in DTYPES]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_are_those_in_rank_order(name: str, size: int, tmp_path: Path) -> None:
    shapes = [(1, 1), (1, 7), (1, 2048), (64, 2048), (64, 1111), (5, 333)]
    for result in run_ranks(name, (size, size), tmp_path, sums, shapes):
        expected = [expected_sum(size, *shape, dtype) for shape in shapes for dtype in DTYPES]
        for found, right in zip(result, expected, strict=True):
            assert torch.equal(found, right)


def side_by_side(backend: Backend, rows: int, widths: list[int], dtype: torch.dtype) -> Tensor:
    rank = backend.place.tensor_rank
    return backend.all_gather(rows_of(rank, rows, widths[rank], dtype), widths)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("rows", "widths"), [(1, [3, 5]), (64, [257, 1, 64]), (3, [0, 9])])
def test_rows_side_by_side(name: str, rows: int, widths: list[int], tmp_path: Path) -> None:
    right = torch.cat([rows_of(rank, rows, width, torch.bfloat16) for rank, width in enumerate(widths)], dim=1)
    ranks = (len(widths), len(widths))
    for found in run_ranks(name, ranks, tmp_path, side_by_side, rows, widths, torch.bfloat16):
        assert torch.equal(found, right)


def passed_on(backend: Backend, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Each stage adds its number to what the one before has sent; the first sends all before anyone computes."""
    place, results = backend.place, []
    for shape in shapes:
        x = rows_of(place.tensor_rank, *shape, torch.float32)
        if not place.is_first_stage:
            x = backend.receive(*shape, torch.float32) + place.stage
        if not place.is_last_stage:
            backend.send(x)
            x.zero_()  # what is sent is taken at once
        results.append(x)
    return [*results, torch.tensor(backend.least([10 - place.rank, place.rank]))]


@pytest.mark.parametrize("name", BACKENDS)
def test_stages(name: str, tmp_path: Path) -> None:
    shapes = [(rows, 100) for rows in range(1, 21)]
    results = run_ranks(name, (6, 2), tmp_path, passed_on, shapes)
    for tensor_rank in (0, 1):
        for shape, found in zip(shapes, results[4 + tensor_rank], strict=False):
            assert torch.equal(found, rows_of(tensor_rank, *shape, torch.float32) + 1 + 2)
    assert all(result[-1].tolist() == [5, 0] for result in results)


def of_other_sizes(backend: Backend) -> None:
    backend.all_reduce(torch.zeros(1, 4 + backend.place.rank))


@pytest.mark.parametrize("name", BACKENDS)
def test_ranks_out_of_step(name: str, tmp_path: Path) -> None:
    with RankProcesses(name, (2, 2), tmp_path, of_other_sizes, timeout=1.0) as ranks:
        for rank in (0, 1):
            with pytest.raises(RankError, match=f"all_reduce on rank {rank} of 2: rank {1 - rank} .*another") as failed:
                ranks.result(rank)
            assert failed.value.rank == 1 - rank
            assert isinstance(failed.value, EngineDeadError)


def killed(backend: Backend) -> None:
    backend.least([1])
    if backend.place.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    backend.receive(1, 4, torch.float32)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_killed_rank(name: str, tmp_path: Path) -> None:
    with (
        RankProcesses(name, (2, 1), tmp_path, killed) as ranks,
        pytest.raises(RankError, match="rank 0 is gone") as failed,
    ):
        ranks.result(1)
    assert failed.value.rank == 0


def through_a_group(backend: Backend, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """As on GPUs, where a collective of PyTorch's takes what is exchanged rank by rank elsewhere."""
    assert isinstance(backend, TorchBackend)
    backend._tensor_group = torch.distributed.group.WORLD
    rank = backend.place.tensor_rank
    own = rows_of(rank, rows, width, torch.bfloat16)
    return backend.all_reduce(own.t().contiguous().t()), backend.all_gather(own[:, : width - rank], [width, width - 1])


def test_a_group_gives_what_ranks_give_each_other(tmp_path: Path) -> None:
    right = torch.cat([rows_of(0, 5, 8, torch.bfloat16), rows_of(1, 5, 8, torch.bfloat16)[:, :7]], dim=1)
    for total, together in run_ranks("torch", (2, 2), tmp_path, through_a_group, 5, 8):
        assert torch.equal(total, expected_sum(2, 5, 8, torch.bfloat16))
        assert torch.equal(together, right)


class NeverDone:
    """In place of a GPU's event."""

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return False


def test_a_gpu_that_waits_in_vain_for_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Event", NeverDone)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    backend.await_ranks()  # one rank alone waits for nobody
    backend.place, backend._timeout = RankPlace(1, 2, 2), 0.01
    with pytest.raises(RankError, match=r"a step on rank 1 of 2: a rank is gone, or did not come within 0.01 s"):
        backend.await_ranks()


def test_apart_nobody_is_met() -> None:
    backend, x = TorchBackend(torch.device("cpu")), torch.ones(2, 3)
    backend.place = RankPlace(3, 6, 2)
    with backend.apart():
        assert backend.all_reduce(x) is x
        assert backend.all_gather(x, [4, 3]).shape == (2, 7)
        assert backend.receive(2, 5, torch.bfloat16).tolist() == [[0.0] * 5] * 2
        backend.send(x)
