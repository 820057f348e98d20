"""Triton's routers: the same choices as the reference's, and of equals the first."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, RouterSpec
from tests.ops.conftest import REFERENCE
from tests.ops.test_experts import SPECS, bias_of

pytest.importorskip("triton")

MORE = [RouterSpec(3, norm=3.0), RouterSpec(3, norm=math.inf), RouterSpec(12, norm=1.0), RouterSpec(1)]


def alone(backend: Backend, logits: Tensor, spec: RouterSpec, bias: Tensor | None, got: tuple[Tensor, Tensor]) -> None:
    for rows in (slice(0, 1), slice(7, 20)):
        for part, whole in zip(backend.route(logits[rows], spec, bias), got, strict=True):
            assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("spec", [*SPECS, *MORE], ids=str)
def test_agrees_with_the_reference(triton_backend: Backend, spec: RouterSpec, generator: torch.Generator) -> None:
    """Rows lie apart, and have the same bits alone; what is chosen elsewhere weighs the same."""
    logits = (torch.randn(50, 61, generator=generator) * 2)[:, :12]
    bias = bias_of(spec, 12, generator)
    weights, chosen = triton_backend.route(logits, spec, bias)
    want, numbers = REFERENCE.route(logits.double(), spec, None if bias is None else bias.double())
    assert (weights.dtype, chosen.dtype) == (torch.float32, torch.int64)
    assert torch.equal(chosen[want > 0], numbers[want > 0])
    torch.testing.assert_close(weights.double(), want, rtol=1e-5, atol=1e-7)
    assert all(len(set(row)) == spec.top_k for row in chosen.tolist())
    alone(triton_backend, logits, spec, bias, (weights, chosen))
    assert triton_backend.route(logits[:0], spec, bias)[0].shape == (0, spec.top_k)

    given = triton_backend.route(logits, spec, bias, numbers)
    assert given[1] is numbers
    torch.testing.assert_close(given[0], REFERENCE.route(logits, spec, bias, numbers)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("experts", [60, 256, 384])
def test_many_experts(triton_backend: Backend, experts: int, generator: torch.Generator) -> None:
    spec = RouterSpec(8, 1.0, 1e-20, num_groups=12 if experts != 256 else 8, top_groups=4, group_best=2, factor=2.5)
    spec = replace(spec, scores="sigmoid", is_biased=True)
    logits, bias = torch.randn(20, experts, generator=generator), torch.rand(experts, generator=generator)
    got = triton_backend.route(logits, spec, bias)
    want = REFERENCE.route(logits, spec, bias)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-7)
    alone(triton_backend, logits, spec, bias, got)


def expected_of_equals(spec: RouterSpec, logits: Tensor) -> list[int]:
    """The first of the largest, group by group where there are groups."""
    groups = logits.view(spec.num_groups, -1)
    ranks = groups.sort(-1, descending=True).values[:, : spec.group_best].sum(-1)
    kept = ranks.argsort(descending=True, stable=True)[: spec.top_groups] if spec.num_groups > 1 else torch.arange(1)
    left = torch.full_like(groups, -torch.inf)
    left[kept] = groups[kept]
    return left.flatten().argsort(descending=True, stable=True)[: spec.top_k].tolist()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.noise is None], ids=str)
def test_of_equals_the_first_are_chosen(triton_backend: Backend, spec: RouterSpec) -> None:
    """Of zeros too, whose signs do not count; what no kept group has comes after all that one has, each once."""
    rows = torch.tensor([[1.0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0], [-0.0, 0] * 6, [-1e30] * 12, [0.0] * 11 + [2.0]])
    bias = torch.zeros(12) if spec.is_biased else None
    _, chosen = triton_backend.route(rows, spec, bias)
    assert chosen.tolist() == [expected_of_equals(spec, row + 0.0) for row in rows]
    assert torch.equal(REFERENCE.route(rows, spec, bias)[1], chosen)


@pytest.mark.parametrize("spec", [*SPECS, *MORE], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(triton_backend: Backend, spec: RouterSpec, bad: float) -> None:
    logits = torch.zeros(4, 12)
    logits[1, 4] = bad
    logits[2] = bad
    bias = torch.zeros(12) if spec.is_biased else None
    weights, chosen = triton_backend.route(logits, spec, bias)
    assert 0 <= int(chosen.min()) <= int(chosen.max()) < 12
    assert weights[[0, 3]].isfinite().all()
    if math.isnan(bad):
        assert weights[1:3].isnan().any(1).all()
