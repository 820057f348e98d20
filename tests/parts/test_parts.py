"""Name tables, experts and poolers on their own."""

from typing import Any

import pytest
import torch
from torch import nn

from octavo.ops import Gate, select_backend
from octavo.parts import Batch, GatedMLP, Linear, MoE, Names, Pooler, softmax_then_topk, transposed
from octavo.parts.names import parameter

NAMES = Names(
    {
        "model.embed": "embed",
        "model.layers.{i}.attn.{q|k}_proj": "layers.{i}.qkv.{q|k}",
        "model.layers.{i}.experts.{e}.{w1|w3}": "layers.{i}.experts.{e}.gate_up.{gate|up}",
        "model.h.{i}.c_fc": transposed("layers.{i}.up"),
        "model.layers.{i}.A_log": parameter("layers.{i}.a_log"),
    },
    ignored=("model.layers.{i}.attn.inv_freq",),
    prefix="model.",
)


@pytest.mark.parametrize(
    ("published", "path"),
    [
        ("model.embed.weight", "embed.weight"),
        ("embed.weight", "embed.weight"),
        ("model.layers.12.attn.k_proj.bias", "layers.12.qkv.k.bias"),
        ("layers.3.experts.7.w3.weight", "layers.3.experts.7.gate_up.up.weight"),
        ("model.layers.0.A_log", "layers.0.a_log"),
    ],
)
def test_names(published: str, path: str) -> None:
    assert NAMES.locate(published).path == path
    assert NAMES.published(path).endswith(published)


def test_unknown_ignored_and_transposed() -> None:
    assert NAMES.locate("model.layers.x.attn.q_proj.weight") is None
    assert NAMES.locate("model.embedding.weight") is None
    assert NAMES.is_ignored("layers.4.attn.inv_freq")
    assert not NAMES.is_ignored("model.layers.4.attn.q_proj.weight")
    into = NAMES.locate("model.h.1.c_fc.weight")
    assert into.transform(torch.zeros(2, 3)).shape == (3, 2)
    assert into.transform(torch.zeros(5)).shape == (5,)


def rows_of(x: torch.Tensor) -> Batch:
    """A batch of as many tokens as `x` has rows."""
    index = torch.zeros(len(x), dtype=torch.long)
    return Batch(index, index, index, len(x), [])


def silu_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return nn.functional.silu(gate) * up


CLAMPED = Gate("quick_gelu", limit=2.0, up_offset=1.0)


def clamped_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate = gate.clamp(max=2.0)
    return gate * torch.sigmoid(1.702 * gate) * (up.clamp(-2.0, 2.0) + 1)


@pytest.mark.parametrize("preference", ["torch", "auto"])
@pytest.mark.parametrize(
    ("expert", "combine"),
    [(lambda: GatedMLP(8, 12, "silu"), silu_gate), (lambda: GatedMLP(8, 12, CLAMPED, bias=True), clamped_gate)],
    ids=["silu", "clamped"],
)
def test_experts_are_weighted_by_the_router(
    preference: str, expert: Any, combine: Any, generator: torch.Generator
) -> None:
    backend = select_backend("cpu", preference)
    moe = MoE(Linear(8, 5, exact=True), [expert() for _ in range(5)], softmax_then_topk(2))
    weights: dict[str, torch.Tensor] = {}
    for name, part in moe.named_modules():
        if isinstance(part, Linear):
            weights[name] = torch.randn(part.outputs, part.inputs, generator=generator)
            weights[name + ".bias"] = torch.randn(part.outputs, generator=generator) * part.has_bias
            part.load(backend.linear(weights[name].clone()))
            if part.has_bias:
                part.weight_slots()["bias"].load(weights[name + ".bias"])
    for part in moe.modules():
        if hasattr(part, "prepare"):
            part.prepare(backend)
    x = torch.randn(20, 8, generator=generator)
    got = moe(x, rows_of(x))
    top, chosen = (x @ weights["router"].T).softmax(-1).topk(2)
    want = torch.zeros_like(x)
    for row, (factors, experts) in enumerate(zip(top / top.sum(-1, keepdim=True), chosen.tolist(), strict=True)):
        for factor, expert in zip(factors, experts, strict=True):
            gate_up, down = f"experts.{expert}.gate_up", f"experts.{expert}.down"
            gate, up = (weights[gate_up] @ x[row] + weights[gate_up + ".bias"]).chunk(2)
            want[row] += factor * (weights[down] @ combine(gate, up) + weights[down + ".bias"])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for rows in (1, 3, 11):
        assert torch.equal(moe(x[:rows], rows_of(x[:rows])), got[:rows])
    padded = moe(torch.cat([x, x]), rows_of(x))
    assert torch.equal(padded, torch.cat([got, torch.zeros_like(got)]))  # padding chooses nobody


@pytest.mark.parametrize("kind", ["LAST", "CLS", "MEAN", "ALL", "STEP"])
@pytest.mark.parametrize("cuts", [[10], [1, 9], [3, 3, 4]])
def test_pooler_does_not_see_chunks(kind: str, cuts: list[int], generator: torch.Generator) -> None:
    hidden, tokens = torch.randn(10, 4, generator=generator), torch.tensor([0, 1, 7, 0, 7, 0, 0, 0, 1, 7])
    pooler = Pooler(kind, normalize=False, step_tag_id=7)
    for h, t in zip(hidden.split(cuts), tokens.split(cuts), strict=True):
        pooler.add(h, t)
    want = {"LAST": hidden[-1], "CLS": hidden[0], "MEAN": hidden.mean(0), "ALL": hidden, "STEP": hidden[[2, 4, 9]]}[
        kind
    ]
    torch.testing.assert_close(pooler.result(rows_of(hidden)), want)
    whole = Pooler(kind, normalize=True, step_tag_id=7, dimensions=2)
    whole.add(hidden, tokens)
    assert whole.result(rows_of(hidden)).norm(dim=-1).allclose(torch.tensor(1.0))
    assert whole.result(rows_of(hidden)).shape[-1] == 2
