"""Experts: against each row's own products, whatever the rows around it."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, PackedLinear, RouterSpec
from octavo.ops.weight_kinds import WeightKind
from tests.ops.conftest import REFERENCE

EXPERTS, ROWS = 5, 23


def layers(
    backend: Backend, width: int, outputs: int, kind: WeightKind | None, generator: torch.Generator
) -> list[PackedLinear]:
    weights = [torch.randn(outputs, width, generator=generator) for _ in range(EXPERTS)]
    return [backend.linear(w) if kind is None else backend.stored_linear([backend.quantize(w, kind)]) for w in weights]


def choices(generator: torch.Generator, top_k: int) -> Tensor:
    """Expert 2 is chosen by nobody, and expert 0 by everybody where there are two or more."""
    others = torch.tensor([1, 3, 4])
    rows = [others[torch.randperm(3, generator=generator)][:top_k] for _ in range(ROWS)]
    chosen = torch.stack(rows)
    if top_k > 1:
        chosen[:, 0] = 0
    return chosen


@pytest.mark.parametrize("kind", [None, WeightKind.Q8_0, WeightKind.Q4_1], ids=["float32", "int8", "q4"])
@pytest.mark.parametrize(("top_k", "of_choice"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize(("width", "outputs"), [(64, 48), (96, 37)])
def test_each_choice_is_its_own_product(
    backend: Backend,
    width: int,
    outputs: int,
    top_k: int,
    of_choice: bool,
    kind: WeightKind | None,
    generator: torch.Generator,
) -> None:
    if kind is not None and kind not in backend.capabilities.weight_kinds:
        pytest.skip("the reference computes with floats")
    each, chosen = layers(backend, width, outputs, kind, generator), choices(generator, top_k)
    wide = torch.randn(ROWS * (top_k if of_choice else 1), width + 5, generator=generator)
    x = wide[:, :width]  # rows lie apart
    got = backend.experts(each)(x, chosen)
    flat = chosen.flatten().tolist()
    rows = [x[i if of_choice else i // top_k].unsqueeze(0) for i in range(len(flat))]
    want = torch.cat([each[e](row) for e, row in zip(flat, rows, strict=True)])
    if kind is None and backend.name.startswith("triton"):  # kernels of floats by themselves split columns otherwise
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(got, want)


def test_experts_that_nobody_chose_are_not_run(generator: torch.Generator) -> None:
    class Counted:
        calls = 0

        def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
            self.calls += 1
            return x

        def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            raise NotImplementedError

    experts = [Counted() for _ in range(EXPERTS)]
    REFERENCE.experts(experts)(torch.randn(ROWS, 4, generator=generator), choices(generator, 3))
    assert [e.calls for e in experts] == [1, 1, 0, 1, 1]


def test_rows_do_not_meet(backend: Backend, generator: torch.Generator) -> None:
    experts, chosen = backend.experts(layers(backend, 64, 32, None, generator)), choices(generator, 3)
    x = torch.randn(ROWS, 64, generator=generator)
    whole = experts(x, chosen).view(ROWS, 3, -1)
    for i in range(ROWS):
        assert torch.equal(experts(x[i : i + 1], chosen[i : i + 1]), whole[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("terms", "width"), [(1, 16), (2, 37), (8, 128)])
def test_weighted_sum(backend: Backend, terms: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    y = torch.randn(ROWS * terms, width, generator=generator).to(dtype)
    weights = torch.rand(ROWS, terms, generator=generator)
    got = backend.weighted_sum(y, weights, terms)
    want = (y.view(ROWS, terms, width).double() * weights.unsqueeze(-1)).sum(1)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=1e-2 if dtype != torch.float32 else 1e-6, atol=1e-2)
    torch.testing.assert_close(got, REFERENCE.weighted_sum(y, weights, terms), rtol=1e-2, atol=1e-5)
    assert torch.equal(backend.weighted_sum(y, None, terms), backend.weighted_sum(y, torch.ones_like(weights), terms))


SPECS = [
    RouterSpec(2),
    RouterSpec(3, norm=1.0),
    RouterSpec(3, norm=2.0, eps=0.5),
    RouterSpec(4, norm=1.0, eps=1e-20, factor=2.5, num_groups=4, top_groups=2),
    RouterSpec(1, factor=16.0, num_groups=3, top_groups=1),
    RouterSpec(2, noise=0.1),
    RouterSpec(2, scores="logits"),
    RouterSpec(4, norm=1.0, min_norm=0.9),
    RouterSpec(3, norm=1.0, eps=1e-20, factor=2.5, num_groups=4, top_groups=2, group_best=2),
    RouterSpec(3, scores="sigmoid", factor=1.5, num_groups=3, top_groups=2, group_best=2, is_biased=True),
    RouterSpec(4, norm=1.0, eps=1e-6, scores="sigmoid", is_biased=True),
    RouterSpec(4, norm=1.0, eps=1e-20, scores="sqrt_softplus", is_biased=True),
    RouterSpec(2, scores="sigmoid", num_groups=6, top_groups=1, group_best=5),
    RouterSpec(7, num_groups=12, top_groups=4),  # of fewer than are chosen at 12 experts: others weigh nothing
]


def bias_of(spec: RouterSpec, experts: int, generator: torch.Generator) -> Tensor | None:
    return torch.randn(experts, generator=generator) if spec.is_biased else None


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("experts", [12, 60])
def test_route(backend: Backend, spec: RouterSpec, experts: int, generator: torch.Generator) -> None:
    """Against the reference in float64; and a row's choice does not depend on the others."""
    logits = torch.randn(50, experts, generator=generator) * 2
    spec.check(experts)
    bias = bias_of(spec, experts, generator)
    weights, chosen = backend.route(logits, spec, bias)
    want, numbers = REFERENCE.route(logits.double(), spec, bias if bias is None else bias.double())
    assert torch.equal(chosen[want > 0], numbers[want > 0])
    torch.testing.assert_close(weights.double(), want, rtol=1e-5, atol=1e-7)
    for rows in (slice(0, 1), slice(7, 20)):
        alone = backend.route(logits[rows], spec, bias)
        assert torch.equal(alone[0], weights[rows])
        assert torch.equal(alone[1], chosen[rows])


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_routed_to_what_is_there(
    backend: Backend, spec: RouterSpec, bad: float, generator: torch.Generator
) -> None:
    logits = torch.zeros(3, 12)
    logits[1, 4] = bad
    logits[2] = bad
    weights, chosen = backend.route(logits, spec, bias_of(spec, 12, generator))
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < 12
    assert weights[0].isfinite().all()


def test_a_bias_chooses_and_does_not_weigh(backend: Backend) -> None:
    """Group 1 has the best expert, and group 0 the best two."""
    logits, bias = torch.tensor([[2.0, 1.9, 2.1, -9.0]]), torch.tensor([0.0, 0.0, 0.0, 0.0])
    spec = RouterSpec(1, scores="sigmoid", num_groups=2, group_best=2, is_biased=True)
    assert backend.route(logits, spec, bias)[1].item() == 0
    weights, chosen = backend.route(logits, spec, torch.tensor([0.0, 0.0, 0.0, 5.0]))
    assert chosen.item() == 3
    torch.testing.assert_close(weights, torch.sigmoid(torch.tensor([[-9.0]])))


def test_of_equals_the_first_are_chosen(backend: Backend) -> None:
    logits = torch.tensor([[1.0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0], [0.0] * 12])
    for scores in ("softmax", "sigmoid", "logits"):
        _, chosen = backend.route(logits, RouterSpec(4, scores=scores))
        assert chosen.tolist() == [[0, 3, 4, 7], [0, 1, 2, 3]]
    _, chosen = backend.route(logits, RouterSpec(3, num_groups=4, top_groups=2))
    assert chosen.tolist() == [[0, 3, 4], [0, 1, 2]]


@pytest.mark.parametrize(
    "spec", [RouterSpec(0), RouterSpec(13), RouterSpec(2, num_groups=5), RouterSpec(2, top_groups=2)]
)
def test_a_router_that_cannot_choose(spec: RouterSpec) -> None:
    with pytest.raises(ValueError, match="cannot choose"):
        spec.check(12)
