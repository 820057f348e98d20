"""The delta rule: against its recurrence in float64, and bit for bit against itself cut anywhere."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, DeltaInput, DeltaSpec, RecurrentPlan, SequenceRun, plan_recurrent

TOKENS = 70
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SIZES = [(4, 2, 16, 12), (3, 3, 7, 20), (2, 1, 33, 70), (2, 2, 64, 64), (1, 1, 128, 5)]
"""Heads, key heads, key_dim, value_dim."""


def plan_of(runs: list[tuple[int, int, int, int]]) -> RecurrentPlan:
    """Of (first row, tokens, start, slot)."""
    return plan_recurrent([SequenceRun(*run) for run in runs])


class Case:
    """A sequence for a layer of one of the kinds: a decay a head, a decay a channel, no correction."""

    def __init__(self, kind: str, sizes: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        heads, key_heads, key_dim, value_dim = sizes
        plain = kind == "linear"
        eps, beta_scale = None if plain else 1e-6, 2.0 if kind == "head" else 1.0
        self.spec = DeltaSpec(*sizes, key_dim**-0.5, eps, beta_scale, in_turn=kind == "turn")
        self.sizes = key_heads * key_dim, key_heads * key_dim, heads * value_dim
        self.qkv = (rand(TOKENS, sum(self.sizes) + 3) * 0.5).to(dtype)
        per = heads * (key_dim if kind == "channel" else 1)
        self.decay = None if plain else (rand(TOKENS, per + 5) - 2).to(dtype)
        self.beta = None if plain else rand(TOKENS, heads + 1).to(dtype)
        self.rate, self.bias = -rand(heads).abs() - 0.01, None if plain else rand(per)

    def rows(self) -> list[Tensor | None]:
        return [self.qkv, self.decay, self.beta]

    def inputs(self, rows: list[Tensor | None]) -> DeltaInput:
        """Parts of wider rows, as in the mixers."""
        qkv, decay, beta = rows
        assert qkv is not None
        query, key, value = qkv[:, 3:].split(self.sizes, dim=1)
        own = None if decay is None else decay[:, 5:]
        return DeltaInput(query, key, value, own, None if beta is None else beta[:, 1:], self.rate, self.bias)

    def expected(self) -> Tensor:
        spec, given = self.spec, self.inputs(self.rows())

        def heads(x: Tensor) -> Tensor:
            x = x.double().view(TOKENS, spec.num_key_heads, spec.key_dim)
            if spec.norm_eps is not None:
                x = x / (x.square().sum(-1, keepdim=True) + spec.norm_eps).sqrt()
            each = spec.num_heads // spec.num_key_heads
            return x.repeat(1, each, 1) if spec.in_turn else x.repeat_interleave(each, 1)

        q, k = heads(given.query) * spec.scale, heads(given.key)
        v = given.value.double().view(TOKENS, spec.num_heads, spec.value_dim)
        kept = torch.exp(self.rate.double()).view(1, -1, 1).expand(TOKENS, -1, 1)
        if given.decay is not None and self.bias is not None:
            steps = torch.nn.functional.softplus(given.decay.double() + self.bias).view(TOKENS, spec.num_heads, -1)
            kept = torch.exp(self.rate.double().view(-1, 1) * steps)
        state = torch.zeros(spec.num_heads, spec.key_dim, spec.value_dim, dtype=torch.float64)
        out = []
        for t in range(TOKENS):
            state, new = state * kept[t].unsqueeze(-1), v[t]
            if given.beta is not None:
                beta = given.beta[t].double().sigmoid() * spec.beta_scale
                new = (new - torch.einsum("hk,hkv->hv", k[t], state)) * beta.unsqueeze(-1)
            state = state + k[t].unsqueeze(-1) * new.unsqueeze(1)
            out.append(torch.einsum("hk,hkv->hv", q[t], state).flatten())
        return torch.stack(out)


@DTYPES
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["head", "turn", "channel", "linear"])
def test_every_implementation_computes_alike(
    backend: Backend, kind: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Against the recurrence in float64; and the same bits for a sequence cut anywhere, beside others."""
    case = Case(kind, sizes, dtype, seed=5)
    shape = (case.spec.num_heads, case.spec.key_dim, case.spec.value_dim)
    state = torch.zeros(2, *shape)
    whole = backend.delta_rule(case.inputs(case.rows()), state, plan_of([(0, TOKENS, 0, 1)]), case.spec)
    assert whole.dtype == dtype
    assert not state[0].any()
    torch.testing.assert_close(whole.double(), case.expected(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])

    state, parts = torch.zeros(4, *shape), []
    for first, last in ((0, 1), (1, 2), (2, 40), (40, 41), (41, TOKENS)):
        count = last - first
        rows = [None if x is None else torch.cat([x[:count].flip(0), x[first:last]]) for x in case.rows()]
        state[3] = 0
        plan = plan_of([(0, count, 0, 3), (count, count, first, 0)])
        parts.append(backend.delta_rule(case.inputs(rows), state, plan, case.spec)[count:])
    assert torch.equal(torch.cat(parts), whole)


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize(("heads", "size"), [(1, 64), (4, 12), (3, 33)])
def test_gated_norms(
    backend: Backend, heads: int, size: int, activation: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Of each head, with a gate that is a part of wider rows; a row's bits do not depend on the others."""
    x = torch.randn(9, heads * size, generator=generator).to(dtype)
    wide = torch.randn(9, heads * size + 5, generator=generator).to(dtype)
    weight = torch.randn(size, generator=generator)
    got = backend.rms_norm_gated(x, wide[:, 5:], weight, 1e-5, activation)
    each = x.double().view(9, heads, size)
    normed = each / (each.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    gate = wide[:, 5:].double()
    want = normed.flatten(1) * gate.sigmoid() * (gate if activation == "silu" else 1.0)
    torch.testing.assert_close(got.double(), want, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    assert torch.equal(backend.rms_norm_gated(x[4:5], wide[4:5, 5:], weight, 1e-5, activation), got[4:5])
