"""Adapters in Triton's kernels: a sample of tests/ops/test_adapters.py, since the interpreter is slow."""

import pytest
import torch

from octavo.ops import Backend, Gate, RowAdapters
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import random_rows
from tests.ops.test_adapters import (
    EVERY_WAY,
    INPUTS,
    OUTPUTS,
    changed,
    close,
    expected,
    mixed,
    random_update,
    table_of,
)

pytest.importorskip("triton")


@pytest.mark.parametrize("parts", EVERY_WAY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agrees_with_the_formula(
    triton_backend: Backend, parts: list[tuple[int, int, int]], dtype: torch.dtype, generator: torch.Generator
) -> None:
    plain, full = (random_update(generator, parts, magnitude=whole, bias=whole) for whole in (False, True))
    slots = mixed(21, 2)
    x, y = (torch.randn(21, size, generator=generator) for size in (INPUTS, OUTPUTS))
    got = changed(table_of(triton_backend, [plain, full], dtype), x, y, slots)
    for slot, update in enumerate((plain, full)):
        rows = torch.tensor(slots) == slot
        close(got[rows], expected(update, x[rows], y[rows]), dtype)
    without = torch.tensor(slots) < 0
    assert torch.equal(got[without], y[without])
    touched = torch.zeros(OUTPUTS, dtype=torch.bool)
    for first, count, _ in parts:
        touched[first : first + count] = True
    of_plain = torch.tensor(slots) == 0
    assert torch.equal(got[of_plain][:, ~touched], y[of_plain][:, ~touched])


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("y_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_number_types(
    triton_backend: Backend,
    x_dtype: torch.dtype,
    y_dtype: torch.dtype,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    update = random_update(generator, EVERY_WAY[2], magnitude=True, bias=True)
    x = torch.randn(5, INPUTS, generator=generator).to(x_dtype)
    y = torch.randn(5, OUTPUTS, generator=generator).to(y_dtype)
    got = changed(table_of(triton_backend, [update], dtype), x, y, [0, 0, -1, 0, 0])
    assert got.dtype == y_dtype
    assert torch.equal(got[2], y[2])
    rows = [0, 1, 3, 4]
    close(got[rows], expected(update, x[rows], y[rows]), dtype, y_dtype)


def test_rows_do_not_see_each_other(triton_backend: Backend, generator: torch.Generator) -> None:
    """Alone, cut anywhere, in any order, or among other adapters."""
    updates = [random_update(generator, EVERY_WAY[i], bias=i == 1) for i in (0, 1, 2)]
    table, slots = table_of(triton_backend, updates), mixed(70, 3)
    x, y = (torch.randn(70, size, generator=generator) for size in (INPUTS, OUTPUTS))
    together = changed(table, x, y, slots)
    for cut in (slice(0, 1), slice(0, 17), slice(7, 16), slice(69, 70)):
        assert torch.equal(changed(table, x[cut], y[cut], slots[cut]), together[cut]), cut
    order = torch.randperm(70, generator=generator)
    assert torch.equal(changed(table, x[order], y[order], [slots[i] for i in order.tolist()]), together[order])
    own = [row for row, of in enumerate(slots) if of == 1]
    assert torch.equal(changed(table, x[own], y[own], [1] * len(own)), together[own])
    assert torch.equal(changed(table, x, y, [-1] * 70), y)


def test_what_is_put_later_holds(triton_backend: Backend, generator: torch.Generator) -> None:
    first, other = (random_update(generator, EVERY_WAY[i]) for i in (0, 1))
    table = table_of(triton_backend, [first, first])
    x, y = (torch.randn(3, size, generator=generator) for size in (INPUTS, OUTPUTS))
    table.put(1, triton_backend.pack_update(other, torch.float32))
    table.put(0, None)
    got = changed(table, x, y, [1, 0, 1])
    close(got[[0, 2]], expected(other, x[[0, 2]], y[[0, 2]]), torch.float32)
    assert torch.equal(got[1], y[1])
    table.put(1, None)
    assert torch.equal(changed(table, x, y, [1, 0, 1]), y)


@pytest.mark.parametrize("of_choice", [False, True])
def test_of_experts(triton_backend: Backend, of_choice: bool, generator: torch.Generator) -> None:
    """Each choice by its own expert's update; expert 1 has none."""
    updates = {e: random_update(generator, EVERY_WAY[e]) for e in (0, 2)}
    table = triton_backend.adapter_table(2, 3)
    for expert, update in updates.items():
        table.put(1, triton_backend.pack_update(update, torch.float32), expert)
    chosen = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    slots = [1, 1, -1, 0]
    x = torch.randn(8 if of_choice else 4, INPUTS, generator=generator)
    y = torch.randn(8, OUTPUTS, generator=generator)
    got = changed(table, x, y, slots, chosen)
    for result, expert in enumerate(chosen.flatten().tolist()):
        own = y[result : result + 1]
        if slots[result // 2] == 1 and expert in updates:
            row = x[result if of_choice else result // 2].unsqueeze(0)
            close(got[result : result + 1], expected(updates[expert], row, own), torch.float32)
        else:
            assert torch.equal(got[result : result + 1], own)


@pytest.mark.parametrize("kind", [WeightKind.F32, WeightKind.Q4_1])
def test_gated(triton_backend: Backend, kind: WeightKind, generator: torch.Generator) -> None:
    """Rows without an adapter have the bits that they have where there are none."""
    stored, _ = random_rows(kind, 48, 192, generator)
    gate_up, gate = triton_backend.stored_linear([stored]), Gate("silu")
    update = random_update(generator, [(0, 24, 8), (24, 24, 8)], 192, 48)
    x, slots = torch.randn(21, 192, generator=generator), torch.tensor(mixed(21, 1))
    adapters = RowAdapters(table_of(triton_backend, [update]), slots)
    got = triton_backend.gated_linear(gate_up, x, None, gate, adapters)
    base, plain = triton_backend.gated_linear(gate_up, x, None, gate), gate_up(x)
    assert torch.equal(got[slots < 0], base[slots < 0])
    rows = slots == 0
    want = triton_backend.gated(expected(update, x[rows], plain[rows]).float(), gate)
    torch.testing.assert_close(got[rows], want, rtol=1e-4, atol=1e-3)


def test_matrices_of_too_high_a_rank_are_refused(triton_backend: Backend, generator: torch.Generator) -> None:
    update = random_update(generator, [(0, 8, 5000)], 8, 8)
    with pytest.raises(ValueError, match="rank 5000"):
        triton_backend.pack_update(update, torch.float32)
