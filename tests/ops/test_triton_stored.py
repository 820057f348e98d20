"""Triton's products with weights as they are stored, and of experts: a sample, since the interpreter is slow."""

from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, Gate
from octavo.ops.weight_kinds import BITS_HELD, NOT_OF_GGUF, WeightKind
from tests.ops.conftest import REFERENCE
from tests.ops.stored import FLOATS, QUANTIZED, random_rows, width_for

pytest.importorskip("triton")

LONG = pytest.mark.interpreted
SAMPLE = (WeightKind.Q4_K, WeightKind.Q5_0, WeightKind.Q8_0, WeightKind.IQ2_XS, WeightKind.U4_64, WeightKind.NVFP4)
"""Of each way that codes and scales lie in, one."""


def sampled(kinds: list[WeightKind], *few: WeightKind) -> list[object]:
    """Kinds, of which the suite's every run has some."""
    return [pytest.param(kind, marks=[] if kind in few else LONG, id=kind.name) for kind in kinds]


def size_of(x: Tensor, weight: Tensor) -> float:
    """Of the terms of products, by which errors are measured."""
    return float((x.double().abs() @ weight.abs().T).amax()) + 1e-6


@pytest.mark.parametrize("kind", QUANTIZED, ids=attrgetter("name"))
def test_rows_are_the_stored_numbers(triton_backend: Backend, kind: WeightKind, generator: torch.Generator) -> None:
    width = width_for(kind, 96)
    stored, weight = random_rows(kind, 21, width, generator)
    packed = triton_backend.stored_linear([stored])
    ids = torch.tensor([0, 20, 17, 17, 3])
    got = packed.rows(ids, torch.float32, 2.0)
    torch.testing.assert_close(got.double(), 2 * weight[ids], rtol=1e-6, atol=1e-7)
    some = packed.rows(ids, torch.float32, 2.0, 17)  # numbers of the first are from 17 on
    torch.testing.assert_close(some[1].double(), 2 * weight[3], rtol=1e-6, atol=1e-7)
    assert not some[0].any()


@pytest.mark.parametrize("kind", sampled(QUANTIZED, *SAMPLE))
@pytest.mark.parametrize(
    ("width", "outputs", "rows"),
    [(96, 37, 3), pytest.param(800, 1, 21, marks=LONG), pytest.param(1100, 130, 1, marks=LONG)],
)
def test_agrees_with_float64(
    triton_backend: Backend, kind: WeightKind, width: int, outputs: int, rows: int, generator: torch.Generator
) -> None:
    """Rows are not rounded, unlike the core's: what remains is float32's own rounding."""
    stored, weight = random_rows(kind, outputs, width_for(kind, width), generator)
    x, bias = torch.randn(rows, weight.shape[1], generator=generator), torch.randn(outputs, generator=generator)
    got = triton_backend.stored_linear([stored])(x, bias)
    assert float((got.double() - x.double() @ weight.T - bias.double()).abs().amax()) < 1e-6 * size_of(x, weight)


@pytest.mark.parametrize("kind", sampled([*QUANTIZED, *FLOATS], WeightKind.Q4_0))
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(d, marks=LONG) for d in (torch.float16, torch.float32))]
)
def test_rows_do_not_see_each_other(
    triton_backend: Backend, kind: WeightKind, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Columns are split, so that few rows and many are summed by other kernels."""
    width = width_for(kind, 1100)
    kernel = triton_backend.stored_linear([random_rows(kind, 33, width, generator)[0]])
    x = torch.randn(70, width, generator=generator).to(dtype)
    together = kernel(x)
    for rows in (1, 2, 17, 33):
        assert torch.equal(kernel(x[:rows]), together[:rows]), rows
    assert torch.equal(kernel(x[7:16]), together[7:16])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_with_rounded_weights(
    triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    stored, weight = random_rows(WeightKind.Q4_1, 40, 64, generator)
    x = torch.randn(9, 64, generator=generator).to(dtype)
    got = triton_backend.stored_linear([stored])(x)
    want = (x.double() @ weight.to(dtype).double().T).float().to(dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [3, pytest.param(300, marks=LONG)])
@pytest.mark.parametrize("width", [96, 1120])
def test_gated_in_the_product(triton_backend: Backend, width: int, rows: int, generator: torch.Generator) -> None:
    """The same as the product and the gate apart, where columns are split and where they are not."""
    gate_up = triton_backend.stored_linear([random_rows(WeightKind.Q4_0, 48, width, generator)[0]])
    x = torch.randn(rows, width, generator=generator).to(torch.bfloat16)
    bias, gate = torch.randn(48, generator=generator), Gate("silu", limit=3.0)
    got = triton_backend.gated_linear(gate_up, x, bias, gate)
    assert torch.equal(got, triton_backend.gated(gate_up(x, bias), gate))


@pytest.mark.parametrize("of_weight", [torch.float16, torch.float32])
def test_rows_of_another_dtype_are_not_rounded(
    triton_backend: Backend, of_weight: torch.dtype, generator: torch.Generator
) -> None:
    """Float16 has no room for some of bfloat16's numbers."""
    weight = torch.randn(6, 64, generator=generator).to(of_weight)
    x = (torch.randn(3, 64, generator=generator) * 1e6).to(torch.bfloat16)
    linear, gate = triton_backend.linear(weight), Gate("silu")
    want = x.float() @ weight.float().T
    torch.testing.assert_close(linear(x).float(), want, rtol=1e-2, atol=1e4)
    gated = triton_backend.gated_linear(linear, x, None, gate)
    assert torch.equal(gated, triton_backend.gated(linear(x), gate))


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind < NOT_OF_GGUF], ids=attrgetter("name"))
def test_memory(kind: WeightKind, generator: torch.Generator) -> None:
    """No bit more than the core has, but of IQ1, where an eighth more or less is a bit of each code."""
    from octavo.ops.triton.stored_planes import pack

    stored, _ = random_rows(kind, 16, 512, generator)
    held = 8 * pack([stored], torch.device("cpu")).nbytes / (16 * 512)
    more = {WeightKind.IQ1_S: 0.25, WeightKind.IQ1_M: 1.0}.get(kind, 0.0)
    assert held == BITS_HELD.get(kind, 8 * stored.data.nbytes / (16 * 512)) + more


def test_parts_of_different_kinds(triton_backend: Backend, generator: torch.Generator) -> None:
    of = WeightKind
    parts = [random_rows(kind, outputs, 256, generator) for kind, outputs in ((of.Q4_K, 5), (of.Q6_K, 20), (of.F32, 3))]
    whole = torch.cat([weight for _, weight in parts])
    packed = triton_backend.stored_linear([stored for stored, _ in parts])
    x, bias = torch.randn(5, 256, generator=generator), torch.randn(28, generator=generator)
    torch.testing.assert_close(packed(x, bias).double(), x.double() @ whole.T + bias.double(), rtol=1e-5, atol=2e-4)
    ids = torch.tensor([27, 0, 4, 5, 24, 25, 0])
    torch.testing.assert_close(packed.rows(ids, torch.float32, 2.0).double(), 2 * whole[ids], rtol=1e-6, atol=1e-7)


def test_what_is_not_finite_stays_visible(triton_backend: Backend, generator: torch.Generator) -> None:
    kernel = triton_backend.stored_linear([random_rows(WeightKind.Q4_0, 20, 256, generator)[0]])
    x = torch.randn(4, 256, generator=generator)
    sound = kernel(x)
    for bad in (torch.nan, torch.inf):
        x[2, 130] = bad
        got = kernel(x)
        assert not got[2].isfinite().any()
        assert torch.equal(got[[0, 1, 3]], sound[[0, 1, 3]])


@pytest.mark.parametrize(("kind", "error"), [(WeightKind.Q8_0, 1 / 254), (WeightKind.Q4_1, 1 / 30)])
@pytest.mark.parametrize("shape", [(1, 32), (37, 100)], ids=str)
def test_quantizing_rounds_to_the_nearest(
    triton_backend: Backend, kind: WeightKind, error: float, shape: tuple[int, int], generator: torch.Generator
) -> None:
    outputs, width = shape
    weight = torch.randn(outputs, width, generator=generator)
    weight[0] = 0.0
    rows = triton_backend.stored_linear([triton_backend.quantize(weight, kind)]).rows(
        torch.arange(outputs), torch.float32
    )
    blocks = torch.nn.functional.pad(weight, (0, -width % 32)).view(outputs, -1, 32)
    extent = blocks.abs().amax(-1) if kind == WeightKind.Q8_0 else blocks.amax(-1) - blocks.amin(-1)
    of_block = extent * error + blocks.abs().amax(-1) * (5e-4 if kind == WeightKind.Q8_0 else 2e-3)
    assert bool(((rows - weight).abs() <= of_block.repeat_interleave(32, 1)[:, :width] * 1.001 + 1e-7).all())
    assert not rows[0].any()


@pytest.mark.parametrize("groups", [1, 5, 300])
@pytest.mark.parametrize("rows", [1, 40, 2500])
def test_groups_are_found(triton_backend: Backend, groups: int, rows: int, generator: torch.Generator) -> None:
    """Those of no row begin where they end; rows of no group are in none."""
    from octavo.ops.triton.grouping import grouped

    if groups * rows > 50_000:
        groups = 20
    keys = torch.randint(-1, groups, (rows,), generator=generator)
    order, starts = grouped(keys, groups)
    want = torch.cat([torch.nonzero(keys == g).flatten() for g in range(groups)])
    assert torch.equal(order[: len(want)].long(), want)
    assert starts.tolist() == [int(((keys >= 0) & (keys < g)).sum()) for g in range(groups + 1)]


@pytest.mark.parametrize("kind", [WeightKind.F32, WeightKind.Q4_1, WeightKind.U4_32], ids=attrgetter("name"))
@pytest.mark.parametrize("of_choice", [False, True])
def test_experts(triton_backend: Backend, kind: WeightKind, of_choice: bool, generator: torch.Generator) -> None:
    """Each choice is its own product, whatever the rows around it; expert 2 is chosen by nobody."""
    made = [random_rows(kind, 37, 96, generator) for _ in range(5)]
    orders = [torch.randperm(96, generator=generator) for _ in made]
    if kind == WeightKind.U4_32:
        made = [
            (replace(s, order=o), torch.empty_like(w).index_copy_(1, o, w))
            for (s, w), o in zip(made, orders, strict=True)
        ]
    each = [triton_backend.stored_linear([stored]) for stored, _ in made]
    chosen = torch.tensor([0, 1, 3, 4])[torch.randint(0, 4, (23, 3), generator=generator)]
    x = torch.randn(23 * (3 if of_choice else 1), 101, generator=generator)[:, :96]  # rows lie apart
    experts = triton_backend.experts(each)
    got = experts(x, chosen).view(23, 3, -1)
    of = x.view(23, 3, 96) if of_choice else x.unsqueeze(1).expand(23, 3, 96)
    weights = torch.stack([weight for _, weight in made])
    want = torch.einsum("rcoi,rci->rco", weights[chosen], of.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    for row in (0, 11):
        alone = x[3 * row : 3 * row + 3] if of_choice else x[row : row + 1]
        assert torch.equal(experts(alone, chosen[row : row + 1]), got[row])
    if kind != WeightKind.F32:
        assert torch.equal(each[int(chosen[5, 1])](of[5, 1:2])[0], got[5, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weighted_sum(triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    y, weights = torch.randn(15, 37, generator=generator).to(dtype), torch.rand(5, 3, generator=generator)
    got = triton_backend.weighted_sum(y, weights, 3)
    assert torch.equal(got, REFERENCE.weighted_sum(y, weights, 3))
    assert torch.equal(triton_backend.weighted_sum(y[6:9], weights[2:3], 3), got[2:3])
    ones = torch.ones_like(weights)
    assert torch.equal(triton_backend.weighted_sum(y, None, 3), triton_backend.weighted_sum(y, ones, 3))
    assert triton_backend.weighted_sum(y[:0], weights[:0], 3).shape == (0, 37)


def test_columns_in_another_order(triton_backend: Backend, generator: torch.Generator) -> None:
    weight, _ = random_rows(WeightKind.Q8_0, 24, 192, generator)
    x, order = torch.randn(9, 192, generator=generator), torch.randperm(192, generator=generator)
    of = triton_backend.stored_linear([replace(weight, order=order)])
    plain = triton_backend.stored_linear([weight])
    assert torch.equal(of(x), plain(x[:, order]))
    rows = of.rows(torch.arange(24), torch.float32)
    assert torch.equal(rows[:, order], plain.rows(torch.arange(24), torch.float32))


def test_each_group_of_outputs_has_rows_of_its_own(triton_backend: Backend, generator: torch.Generator) -> None:
    stored, weight = random_rows(WeightKind.Q4_0, 24, 64, generator)
    x = torch.randn(5, 3, 64, generator=generator)
    got = triton_backend.group_linear(triton_backend.stored_linear([stored]), 3)(x, torch.float32)
    want = torch.einsum("rgi,goi->rgo", x.double(), weight.view(3, 8, 64))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
