"""Steps run from graphs, with a stand-in that calls the function again on the same buffers."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, BlockTables, DecodeInputs, SequenceRun
from tests.ops.rank_processes import run_ranks

pytest.importorskip("triton")

from octavo.ops.recordable import NotRecordableError, is_recording
from octavo.ops.triton.graph_steps import MAX_ROWS, STEP, CalledAgain, GraphSteps, sizes_up_to

CPU = torch.device("cpu")
BLOCK = 4
BLOCKS = 40


class Toy:
    """A cache of sums: each token adds itself to what its sequence has had, and gives the total at its place."""

    def __init__(self, max_rows: int, encoder: bool = False) -> None:
        self.cache = torch.zeros(BLOCKS * BLOCK, dtype=torch.int64)
        self.states = torch.zeros(8, dtype=torch.int64)
        self.table = torch.zeros(8, 6, dtype=torch.int64)
        self.calls: list[int] = []
        tables = [self.table, self.table] if encoder else [self.table]
        self.steps = GraphSteps(
            CalledAgain,
            CPU,
            self,
            BlockTables(tables, BLOCK, [None] * len(tables), 1 if encoder else None),
            max_rows,
            True,
        )

    def __call__(self, inputs: DecodeInputs) -> tuple[Tensor, ...]:
        plan, adapters = inputs.attention[0], inputs.adapters
        assert adapters is not None
        self.calls.append(len(inputs.tokens))
        self.cache[plan.slot_mapping] = inputs.tokens
        slots = inputs.recurrent.table[:, 2]
        # As kernels do, a run without tokens is passed over.
        self.states.index_add_(0, slots, inputs.tokens * inputs.recurrent.table[:, 1])
        seen = self.states[slots] * 1000 + inputs.positions * 10 + adapters
        return seen, torch.cat([p.run_table for p in inputs.attention], 1)


def step(toy: Toy, rows: list[int], starts: dict[int, int], tokens: list[int]) -> tuple[Tensor, ...]:
    before = [starts[row] for row in rows]
    got = toy.steps.run(
        tokens,
        rows,
        before,
        before,
        [s + 1 for s in before],
        [7] * len(rows),
        [2] * len(rows),
        [row % 3 - 1 for row in rows],
    )
    assert got is not None
    return got


def test_random_schedules_and_padding_writes_nowhere() -> None:
    draw, toy = random.Random(3), Toy(8)
    for row in range(8):
        toy.table[row, :5] = torch.arange(1 + 5 * row - row, 6 + 5 * row - row).clamp(max=BLOCKS - 1)
    starts, sums = dict.fromkeys(range(8), 0), dict.fromkeys(range(8), 0)
    cache = toy.cache.clone()
    for _ in range(60):
        rows = draw.sample([row for row in range(8) if starts[row] < 16], draw.randint(1, 7))
        tokens = [draw.randint(1, 99) for _ in rows]
        got = step(toy, rows, starts, tokens)
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            sums[row] += token
            cache[toy.table[row, starts[row] // BLOCK] * BLOCK + starts[row] % BLOCK] = token
            assert got[0][i] == sums[row] * 1000 + starts[row] * 10 + row % 3 - 1
            assert got[1][i].tolist() == [i, 1, starts[row], row, 0, 0]
            starts[row] += 1
        assert torch.equal(toy.cache[BLOCK:], cache[BLOCK:])  # what padding writes is in block 0, nobody's
        assert [toy.states[row] for row in range(8)] == list(sums.values())
        if sum(s < 16 for s in starts.values()) < 7:
            break
    assert len(toy.steps.graphs) > 2


def test_what_encoders_gave_is_where_tokens_stand_behind_it() -> None:
    toy = Toy(4, encoder=True)
    got = step(toy, [3, 1], {3: 5, 1: 6}, [1, 2])
    assert got[1].tolist() == [[0, 1, 5, 3, 0, 0, 0, 1, 6, 3, 0, 2], [1, 1, 6, 1, 0, 0, 1, 1, 6, 1, 0, 2]]
    got = step(toy, [2], {2: 9}, [1])
    assert got[1].tolist() == [[0, 1, 9, 2, 0, 0, 0, 1, 6, 2, 0, 2]]


@pytest.mark.parametrize("rows", [1, 2, 5, 31, 32, 33, 64, 250, MAX_ROWS])
def test_sizes_cost_little_padding(rows: int) -> None:
    sizes = sizes_up_to(rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == rows
    for count in range(1, rows + 1):
        size = next(s for s in sizes if s >= count)
        assert size < 2 * count or size - count < STEP


@pytest.mark.parametrize("looks", [len, lambda runs: runs[0], list], ids=["len", "first", "list"])
def test_what_treats_sequences_by_themselves_is_not_recorded(
    looks: Callable[[object], object], caplog: pytest.LogCaptureFixture
) -> None:
    def function(inputs: DecodeInputs) -> tuple[Tensor, ...]:
        looks(inputs.attention[0].runs)
        return (inputs.tokens,)

    steps = GraphSteps(
        CalledAgain, CPU, function, BlockTables([torch.zeros(2, 2, dtype=torch.int64)], 4, [None], None), 4
    )
    with caplog.at_level("INFO", "octavo"):
        for _ in range(2):
            assert steps.run([1], [0], [0], [0], [1], [0], [0]) is None
    assert caplog.text.count("operation by operation") == 1


def test_a_model_that_cannot_be_recorded_is_not_tried_again() -> None:
    tried = []

    class Failing(CalledAgain):
        def record(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
            tried.append(function)
            raise NotRecordableError("an operation waits for the device")

    tables = BlockTables([torch.zeros(2, 2, dtype=torch.int64)], 4, [None], None)
    steps = GraphSteps(Failing, CPU, lambda inputs: (inputs.tokens,), tables, 4)
    assert steps.run([1], [0], [0], [0], [1], [0], [0]) is None
    assert steps.run([1, 2], [0, 1], [0, 0], [0, 0], [1, 1], [0, 0], [0, 0]) is None
    assert len(tried) == 1


def test_a_model_without_attention_has_no_tables() -> None:
    steps = GraphSteps(CalledAgain, CPU, lambda inputs: (inputs.recurrent.table + 0,), BlockTables([], 4, [], None), 4)
    got = steps.run([5, 6, 7], [3, 1, 2], [0] * 3, [0] * 3, [1] * 3, [0] * 3, [0] * 3)
    assert got is not None
    assert got[0].tolist() == [[0, 1, 3], [1, 1, 1], [2, 1, 2], [3, 0, 0]]


def sums(backend: Backend, runs_alone: int, peeks: str) -> tuple[list[list[int]], list[int], int]:
    """Steps of 3, 2 and 5 rows in which ranks add up and stages pass on, then one of a single row.

    Args:
        backend: of a rank.
        runs_alone: a rank that treats sequences by themselves, in all steps from its second size on.
        peeks: where it does: "before" it has met others, or "after".

    Returns: the results, the sizes of graphs, and how often the function was called.
    """
    place, calls = backend.place, list[int]()

    def function(inputs: DecodeInputs) -> tuple[Tensor, ...]:
        rows = len(inputs.tokens)
        calls.append(rows)
        peek = place.rank == runs_alone and rows > 4
        if peek and peeks == "before":
            len(inputs.attention[0].runs)
        x = inputs.tokens.unsqueeze(1).float()
        if not place.is_first_stage:
            x = x + backend.receive(rows, 1, torch.float32)
        x = backend.all_reduce(x * (1 + place.tensor_rank))
        if not place.is_last_stage:
            backend.send(x)
        if peek and peeks == "after":
            len(inputs.attention[0].runs)
        return (x,)

    tables = BlockTables([torch.zeros(8, 2, dtype=torch.int64, device=backend.device)], 4, [None], None)
    steps = backend.record_decode(function, tables, 8)
    assert isinstance(steps, GraphSteps)
    results, sizes = [], list[int]()
    for tokens in ([1, 2, 3], [10, 20], [4, 5, 6, 7, 8], [30]):
        zeros, count = [0] * len(tokens), len(tokens)
        got = steps.run(tokens, list(range(count)), zeros, zeros, [1] * count, zeros, zeros)
        sizes = [*steps.graphs] or sizes
        if got is None:  # as a ModelRunner does, without padding
            runs = [SequenceRun(i, 1, 0, i) for i in range(count)]
            plan = backend.plan_attention(runs, tables.tables[0], 4, None, count)
            ids = torch.tensor(tokens, device=backend.device)
            got = function(DecodeInputs(ids, ids, ids, [plan], backend.plan_recurrent(runs), None))
        results.append(got[0][:count, 0].tolist())
    backend.least([0])  # what is on its way to the next stage would not arrive
    return results, sizes, len(calls)


EXPECTED = {
    (2, 2): [[3, 6, 9], [30, 60], [12, 15, 18, 21, 24], [90]],
    (2, 1): [[2, 4, 6], [20, 40], [8, 10, 12, 14, 16], [60]],
    (3, 1): [[3, 6, 9], [30, 60], [12, 15, 18, 21, 24], [90]],
    (4, 2): [[12, 24, 36], [120, 240], [48, 60, 72, 84, 96], [360]],
}
"""By ranks in all, and for each layer."""


@pytest.mark.parametrize("place", EXPECTED, ids=["two ranks", "two stages", "three stages", "two stages of two"])
def test_ranks_record_what_they_meet_in(place: tuple[int, int], tmp_path: Path) -> None:
    for rank, (results, sizes, calls) in enumerate(run_ranks("triton", place, tmp_path, sums, -1, "")):
        if rank >= place[0] - place[1]:
            assert results == EXPECTED[place]
        assert sizes == [4, 2, 8, 1]
        assert calls == 3 * len(sizes)  # alone, with the others, and for the step


@pytest.mark.parametrize("peeks", ["before", "after"])
@pytest.mark.parametrize(("place", "alone"), [((2, 2), 1), ((3, 1), 1), ((4, 2), 3)])
def test_a_rank_that_cannot_record_leaves_nobody_waiting(
    place: tuple[int, int], alone: int, peeks: str, tmp_path: Path
) -> None:
    """That ranks agree: a step that is left out by one, or done twice, would change the results of those after it."""
    for rank, (results, sizes, calls) in enumerate(run_ranks("triton", place, tmp_path, sums, alone, peeks)):
        if rank >= place[0] - place[1]:
            assert results == EXPECTED[place]
        assert sizes == [4, 2]
        assert calls == 3 * len(sizes) + 1 + 2  # one tried in vain, and two steps that are no graphs


class Agreeing:
    """Another rank, which can do what it is told that it can."""

    def __init__(self, *can: bool) -> None:
        self.can, self.is_apart = list(can), False

    @contextmanager
    def apart(self) -> Iterator[None]:
        self.is_apart = True
        yield
        self.is_apart = False

    def least(self, values: Sequence[int]) -> list[int]:
        assert not self.is_apart
        return [min(values[0], self.can.pop(0))]


@pytest.mark.parametrize("can", [(False,), (True, False)], ids=["when tried", "when recorded"])
def test_what_another_rank_cannot_record_is_run_by_all(can: tuple[bool], caplog: pytest.LogCaptureFixture) -> None:
    ranks, apart = Agreeing(*can), list[bool]()

    def function(inputs: DecodeInputs) -> tuple[Tensor, ...]:
        apart.append(ranks.is_apart)
        return (inputs.tokens,)

    tables = BlockTables([torch.zeros(2, 2, dtype=torch.int64)], 4, [None], None)
    steps = GraphSteps(CalledAgain, CPU, function, tables, 4, ranks=ranks)
    with caplog.at_level("INFO", "octavo"):
        for _ in range(2):
            assert steps.run([1], [0], [0], [0], [1], [0], [0]) is None
    assert apart == [True, False][: len(can)]
    assert not steps.graphs
    assert caplog.text.count("another rank cannot record") == 1


def test_adapters_are_told_that_a_step_is_recorded() -> None:
    told = list[bool]()

    def function(inputs: DecodeInputs) -> tuple[Tensor, ...]:
        told.append(is_recording())
        return (inputs.tokens,)

    tables = BlockTables([torch.zeros(2, 2, dtype=torch.int64)], 4, [None], None)
    steps = GraphSteps(CalledAgain, CPU, function, tables, 4, ranks=Agreeing(True, True))
    steps.run([1], [0], [0], [0], [1], [0], [0])
    assert told == [True, True, False]  # tried, recorded, run
    assert not is_recording()
