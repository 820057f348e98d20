"""What adapters make of a weight's results: by the plain formula, and the same bits whatever rows are near."""

import pytest
import torch
from torch import Tensor

from octavo.ops import AdapterTable, Backend, Gate, LinearUpdate, LowRank, RowAdapters
from octavo.ops.native import NativeBackend
from octavo.ops.native.recording import record
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import random_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Of results, and of matrices, relative to the size of sums."""
INPUTS, OUTPUTS = 200, 90
EVERY_WAY = [
    [(0, OUTPUTS, 16)],
    [(0, 32, 16), (32, 16, 16), (48, 42, 16)],
    [(5, 40, 3), (20, 50, 70)],  # neither begins with a panel, and some outputs are of both
    [(89, 1, 1)],
    [],
]
"""First output, outputs and rank of an adapter's parts."""


def random_update(
    generator: torch.Generator,
    parts: list[tuple[int, int, int]],
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
    magnitude: bool = False,
    bias: bool = False,
) -> LinearUpdate:
    low_rank = tuple(
        LowRank(
            first,
            torch.randn(rank, inputs, generator=generator) / inputs**0.5,
            torch.randn(count, rank, generator=generator) / rank**0.5,
        )
        for first, count, rank in parts
    )
    return LinearUpdate(
        low_rank,
        torch.rand(outputs, generator=generator) + 0.5 if magnitude else None,
        torch.randn(outputs, generator=generator) if bias else None,
    )


def expected(update: LinearUpdate, x: Tensor, y: Tensor) -> Tensor:
    """The formula in float64."""
    total, x = y.double(), x.double()
    if update.magnitude is not None:
        total = total * update.magnitude.double()
    if update.bias is not None:
        total = total + update.bias.double()
    for part in update.low_rank:
        total[:, part.first : part.first + len(part.b)] += x @ part.a.double().T @ part.b.double().T
    return total


def close(got: Tensor, want: Tensor, *dtypes: torch.dtype) -> None:
    tolerance = sum(TOLERANCES[dtype] for dtype in dtypes)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=4 * tolerance)


def table_of(backend: Backend, updates: list[LinearUpdate], dtype: torch.dtype = torch.float32) -> AdapterTable:
    """With each in the slot of its number."""
    table = backend.adapter_table(len(updates))
    for slot, update in enumerate(updates):
        table.put(slot, backend.pack_update(update, dtype))
    return table


def changed(table: AdapterTable, x: Tensor, y: Tensor, slots: list[int], chosen: Tensor | None = None) -> Tensor:
    y = y.clone()
    table.apply(x, y, torch.tensor(slots), chosen)
    return y


@pytest.fixture
def four(generator: torch.Generator) -> list[LinearUpdate]:
    return [
        random_update(generator, EVERY_WAY[0]),
        random_update(generator, EVERY_WAY[1], bias=True),
        random_update(generator, EVERY_WAY[2], magnitude=True, bias=True),
        random_update(generator, [(0, OUTPUTS, 130)]),
    ]


def mixed(rows: int, slots: int) -> list[int]:
    """Adapters of neighbours differ, and every fifth row has none."""
    return [-1 if row % 5 == 4 else row * 7 % slots for row in range(rows)]


@pytest.mark.parametrize("parts", EVERY_WAY, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_formula(
    backend: Backend, parts: list[tuple[int, int, int]], dtype: torch.dtype, generator: torch.Generator
) -> None:
    touched = torch.zeros(OUTPUTS, dtype=torch.bool)
    for first, count, _ in parts:
        touched[first : first + count] = True
    for magnitude, bias in ((False, False), (True, False), (True, True)):
        update = random_update(generator, parts, magnitude=magnitude, bias=bias)
        table = table_of(backend, [update], dtype)
        for rows in (1, 2, 7, 40):
            x, y = (torch.randn(rows, size, generator=generator) for size in (INPUTS, OUTPUTS))
            got = changed(table, x, y, [0] * rows)
            close(got, expected(update, x, y), dtype)
            if not magnitude and not bias:
                assert torch.equal(got[:, ~touched], y[:, ~touched]), rows


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("y_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_number_types(
    backend: Backend,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
    dtype: torch.dtype,
    four: list[LinearUpdate],
    generator: torch.Generator,
) -> None:
    table, slots = table_of(backend, four, dtype), mixed(21, len(four))
    x = torch.randn(21, INPUTS, generator=generator).to(x_dtype)
    y = torch.randn(21, OUTPUTS, generator=generator).to(y_dtype)
    got = changed(table, x, y, slots)
    assert got.dtype == y_dtype
    for row, slot in enumerate(slots):
        if slot < 0:
            assert torch.equal(got[row], y[row])
        else:
            close(got[row], expected(four[slot], x[row : row + 1], y[row : row + 1])[0], dtype, y_dtype)


@pytest.mark.parametrize("inputs", [64, 576, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_see_each_other(
    backend: Backend, inputs: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Alone, cut anywhere, in any order, or among other adapters."""
    updates = [random_update(generator, EVERY_WAY[i], inputs, bias=i == 1) for i in (0, 1, 2)]
    table = table_of(backend, updates, dtype)
    x = torch.randn(300, inputs, generator=generator).to(dtype)
    y = torch.randn(300, OUTPUTS, generator=generator).to(dtype)
    slots = mixed(300, 3)
    together = changed(table, x, y, slots)
    for rows in [*range(1, 40), 64, 130, 255]:
        assert torch.equal(changed(table, x[:rows], y[:rows], slots[:rows]), together[:rows]), rows
    for first in (1, 7, 40, 299):
        cut = slice(first, first + 9)
        assert torch.equal(changed(table, x[cut], y[cut], slots[cut]), together[cut])
    order = torch.randperm(300, generator=generator)
    assert torch.equal(changed(table, x[order], y[order], [slots[i] for i in order.tolist()]), together[order])
    for slot in range(3):
        own = [row for row, of in enumerate(slots) if of == slot]
        assert torch.equal(changed(table, x[own], y[own], [slot] * len(own)), together[own])
        among = torch.tensor([i % 3 == 0 for i in range(300)])
        others = [slot if own else -1 for own in among.tolist()]
        found = changed(table, x, y, others)
        assert torch.equal(found[~among], y[~among])
        same = [row for row in own if among[row]]
        assert torch.equal(found[same], together[same])


def test_the_number_of_threads_changes_no_bit(
    native: NativeBackend, four: list[LinearUpdate], generator: torch.Generator
) -> None:
    table, slots = table_of(native, four), mixed(300, 4)
    x, y = torch.randn(300, INPUTS, generator=generator), torch.randn(300, OUTPUTS, generator=generator)
    together = changed(table, x, y, slots)
    for count in (1, 2, 5):
        native.set_threads(count)
        for rows in (1, 5, 300):
            assert torch.equal(changed(table, x[:rows], y[:rows], slots[:rows]), together[:rows])


def test_instruction_sets_agree(four: list[LinearUpdate], generator: torch.Generator, native: NativeBackend) -> None:
    """To the last bit, where numbers are multiplied and added in one step."""
    if native.library.name == "base":
        pytest.skip("no fused instruction")
    x, y = (torch.randn(17, size, generator=generator) for size in (INPUTS, OUTPUTS))
    got = changed(table_of(native, four[:1], torch.bfloat16), x, y, [0] * 17)
    a, b = (of.bfloat16().double() for of in (four[0].low_rank[0].a, four[0].low_rank[0].b))
    values = torch.zeros(17, 16)
    for first in range(0, INPUTS, 64):
        total = torch.zeros(17, 16, dtype=torch.float64)
        for k in range(first, min(first + 64, INPUTS)):  # of numbers that have 24 and 8 bits the product is exact
            total = (total + x[:, k, None].double() * a[:, k]).float().double()
        values = values + total.float()
    total = torch.zeros(17, OUTPUTS, dtype=torch.float64)
    for k in range(16):
        total = (total + values[:, k, None].double() * b[:, k]).float().double()
    # The sum of the exact product and float64's total may be rounded twice here, once in a very long while.
    different = (got != y + total.float()).sum()
    assert int(different) <= 2


def test_rows_without_an_adapter_keep_their_bits(
    backend: Backend, four: list[LinearUpdate], generator: torch.Generator
) -> None:
    x, y = torch.randn(9, INPUTS, generator=generator), torch.randn(9, OUTPUTS, generator=generator)
    y[3, 5], y[4, 6], x[5] = torch.nan, -0.0, torch.inf
    table = backend.adapter_table(4)
    for slots in ([-1] * 9, [0] * 9, mixed(9, 4)):  # nothing is there yet
        assert torch.equal(changed(table, x, y, slots).view(torch.int32), y.view(torch.int32))
    table.put(2, backend.pack_update(four[2], torch.float32))
    got = changed(table, x, y, [2, 1, -1, 0, 3, -1, -1, 2, 2])
    assert torch.equal(got[1:7].view(torch.int32), y[1:7].view(torch.int32))
    close(got[[0, 7, 8]], expected(four[2], x[[0, 7, 8]], y[[0, 7, 8]]), torch.float32)


def test_put_takes_effect_and_is_taken_back(
    backend: Backend, four: list[LinearUpdate], generator: torch.Generator
) -> None:
    x, y = torch.randn(3, INPUTS, generator=generator), torch.randn(3, OUTPUTS, generator=generator)
    packed = [backend.pack_update(update, torch.float32) for update in four]
    each = [changed(table_of(backend, [update]), x, y, [0] * 3) for update in four]
    table = backend.adapter_table(2)
    for first, second in ((0, None), (1, 2), (None, 2), (3, 0), (None, None)):
        table.put(0, None if first is None else packed[first])
        table.put(1, None if second is None else packed[second])
        assert torch.equal(changed(table, x, y, [0, 0, 0]), y if first is None else each[first])
        assert torch.equal(changed(table, x, y, [1, 1, 1]), y if second is None else each[second])


def test_rows_may_lie_apart(backend: Backend, four: list[LinearUpdate], generator: torch.Generator) -> None:
    wide = torch.randn(12, INPUTS + 30, generator=generator)
    results = torch.randn(12, OUTPUTS + 20, generator=generator)
    table, slots = table_of(backend, four), torch.tensor(mixed(24, 4))[::2]
    x, y = wide[:, 10 : 10 + INPUTS], results.clone()
    table.apply(x, y[:, 5 : 5 + OUTPUTS], slots)
    want = changed(table, x.clone(), results[:, 5 : 5 + OUTPUTS].clone(), slots.tolist())
    assert torch.equal(y[:, 5 : 5 + OUTPUTS], want)
    assert torch.equal(y[:, :5], results[:, :5])
    assert torch.equal(y[:, 5 + OUTPUTS :], results[:, 5 + OUTPUTS :])
    columns = torch.randn(INPUTS, 12, generator=generator).T  # a row's values are apart
    results = results[:, :OUTPUTS].contiguous()
    assert torch.equal(
        changed(table, columns, results, slots.tolist()),
        changed(table, columns.contiguous(), results, slots.tolist()),
    )


@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize(("top_k", "of_choice"), [(1, False), (2, False), (3, True)])
def test_experts(backend: Backend, rows: int, top_k: int, of_choice: bool, generator: torch.Generator) -> None:
    """Each result has its own expert's adapter, if that has one, and is the same whatever is computed beside it."""
    experts, slots = 5, [(row * 3) % 4 - 1 for row in range(rows)]
    updates = {
        (slot, expert): random_update(generator, EVERY_WAY[(slot + expert) % 3], bias=expert == 1)
        for slot in range(3)
        for expert in range(experts)
        if (slot, expert) != (1, 2)
    }
    table = backend.adapter_table(3, experts)
    for (slot, expert), update in updates.items():
        table.put(slot, backend.pack_update(update, torch.float32), expert)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(rows)])
    x = torch.randn(rows * (top_k if of_choice else 1), INPUTS, generator=generator)
    y = torch.randn(rows * top_k, OUTPUTS, generator=generator)
    got = changed(table, x, y, slots, chosen)
    for i, expert in enumerate(chosen.flatten().tolist()):
        of = x[i if of_choice else i // top_k].unsqueeze(0)
        own = updates.get((slots[i // top_k], expert))
        if own is None:
            assert torch.equal(got[i], y[i])
        else:
            close(got[i], expected(own, of, y[i : i + 1])[0], torch.float32)
    for row in range(min(rows, 7)):
        of_row = slice(row * top_k, (row + 1) * top_k)
        of_x = of_row if of_choice else slice(row, row + 1)
        alone = changed(table, x[of_x], y[of_row], slots[row : row + 1], chosen[row : row + 1])
        assert torch.equal(alone, got[of_row])


@pytest.mark.parametrize("shared", [False, True])
def test_one_matrix_of_several_parts(backend: Backend, shared: bool, generator: torch.Generator) -> None:
    """As where an adapter has one A for queries, keys and values."""
    a = torch.randn(20, INPUTS, generator=generator) / INPUTS**0.5
    parts = [LowRank(f, a if shared else a.clone(), torch.randn(30, 20, generator=generator)) for f in (0, 30, 60)]
    update = LinearUpdate(tuple(parts))
    x, y = torch.randn(5, INPUTS, generator=generator), torch.randn(5, OUTPUTS, generator=generator)
    close(changed(table_of(backend, [update]), x, y, [0] * 5), expected(update, x, y), torch.float32)


GATES = [Gate("silu"), Gate("gelu_pytorch_tanh"), Gate("relu2"), Gate("silu", limit=1.0), Gate("relu", threshold=0.02)]


@pytest.mark.parametrize("kind", [*DTYPES, WeightKind.Q4_1, WeightKind.Q8_0], ids=str)
@pytest.mark.parametrize("size", [64, 24])  # a gate of 24 outputs shares a panel with what it gates
def test_gated(backend: Backend, kind: torch.dtype | WeightKind, size: int, generator: torch.Generator) -> None:
    """Rows without an adapter have the bits that they have where there are none; the others are close."""
    width = 192
    if isinstance(kind, WeightKind):
        if not isinstance(backend, NativeBackend):
            pytest.skip("the reference computes with floats")
        stored, weight = random_rows(kind, 2 * size, width, generator)
        gate_up, dtype = backend.stored_linear([stored]), torch.float32
    else:
        weight, dtype = (torch.randn(2 * size, width, generator=generator) / width**0.5).to(kind), kind
        gate_up = backend.linear(weight)
    updates = [random_update(generator, parts, width, 2 * size) for parts in ([(0, size, 8)], [(3, 2 * size - 3, 16)])]
    x, slots = torch.randn(21, width, generator=generator).to(dtype), torch.tensor(mixed(21, 2))
    adapters = RowAdapters(table_of(backend, updates, dtype), slots)
    nobody = RowAdapters(adapters.table, torch.full_like(slots, -1))
    without = slots < 0
    for bias in (None, torch.randn(2 * size, generator=generator)):
        plain = gate_up(x.float() if isinstance(kind, WeightKind) else x, bias)
        for gate in GATES:
            got, base = (backend.gated_linear(gate_up, x, bias, gate, of) for of in (adapters, None))
            assert got.dtype == base.dtype == dtype
            assert torch.equal(got[without].view(torch.uint8), base[without].view(torch.uint8)), gate
            assert torch.equal(backend.gated_linear(gate_up, x, bias, gate, nobody), base), gate
            for slot in (0, 1):
                rows = slots == slot
                want = backend.gated(expected(updates[slot], x[rows], plain[rows]).float(), gate)
                tolerance = 4 * TOLERANCES[dtype]
                torch.testing.assert_close(got[rows].float(), want, rtol=tolerance, atol=4 * tolerance)
                few = RowAdapters(adapters.table, slots[rows][:3])
                assert torch.equal(backend.gated_linear(gate_up, x[rows][:3], bias, gate, few), got[rows][:3]), gate


def test_a_recording_follows(native: NativeBackend, four: list[LinearUpdate], generator: torch.Generator) -> None:
    """What is put into a table after it was recorded takes effect, for as many rows as are run."""
    weight = native.linear(torch.randn(OUTPUTS, INPUTS, generator=generator))
    gate_up = native.linear(torch.randn(64, OUTPUTS, generator=generator))
    tables = [native.adapter_table(4), native.adapter_table(4)]
    of_gate = [random_update(generator, [(0, 32, 8), (32, 32, 8)], OUTPUTS, 64) for _ in four]
    x, slots = torch.zeros(8, INPUTS), torch.full((8,), -1)

    def step() -> tuple[Tensor]:
        y = weight(x)
        tables[0].apply(x, y, slots)
        return (native.gated_linear(gate_up, y, None, Gate("silu"), RowAdapters(tables[1], slots)),)

    program = record(native.library, step, 8)
    assert program.torch_calls == []
    x.copy_(torch.randn(8, INPUTS, generator=generator))
    for put in (None, 0, 1, None, 3):
        for table, updates in zip(tables, (four, of_gate), strict=True):
            table.put(2, None if put is None else native.pack_update(updates[put], torch.float32))
            table.put(0, native.pack_update(updates[2], torch.float32))
        for rows, of in ((8, [2, 0, -1, 1, 2, 2, 0, -1]), (3, [2, 2, 0]), (1, [-1]), (5, [-1] * 5)):
            slots[:rows] = torch.tensor(of)
            want = step()[0][:rows].clone()
            (got,) = program.run(rows)
            assert torch.equal(got, want)


def test_a_recording_of_experts_follows(native: NativeBackend, generator: torch.Generator) -> None:
    experts = native.experts([native.linear(torch.randn(OUTPUTS, INPUTS, generator=generator)) for _ in range(3)])
    table, x, slots = native.adapter_table(1, 3), torch.zeros(8, INPUTS), torch.zeros(8, dtype=torch.int64)
    chosen = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]] * 2)

    def step() -> tuple[Tensor]:
        y = experts(x, chosen)
        table.apply(x, y, slots, chosen)
        return (y,)

    program = record(native.library, step, 8)
    table.put(0, native.pack_update(random_update(generator, EVERY_WAY[0]), torch.float32), 2)
    x.copy_(torch.randn(8, INPUTS, generator=generator))
    for rows in (8, 3, 1):
        want = step()[0].clone()
        program.run(rows)
        assert torch.equal(program._results[0][: 2 * rows], want[: 2 * rows])


def test_rows_of_a_weight_of_several_parts(native: NativeBackend, generator: torch.Generator) -> None:
    """What the lengths of its rows are made of."""
    shapes = [(WeightKind.Q4_1, 48), (WeightKind.Q8_0, 20), (WeightKind.F32, 5)]
    parts = [random_rows(kind, outputs, 96, generator) for kind, outputs in shapes]
    weight = torch.cat([numbers for _, numbers in parts])
    packed = native.stored_linear([stored for stored, _ in parts])
    for ids in (torch.arange(73), torch.tensor([72, 0, 48, 47, 67, 68, 0]), torch.tensor([], dtype=torch.int64)):
        got = packed.rows(ids, torch.float32, 2.0)
        torch.testing.assert_close(got.double(), 2 * weight[ids], rtol=1e-6, atol=1e-7)
