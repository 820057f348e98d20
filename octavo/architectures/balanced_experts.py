"""Experts beside one that every token shares, chosen by DeepSeek-V3's router: what several families have alike."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from octavo.architectures.decoder import gated_mlp
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.ops import RouterSpec
from octavo.parts import GatedMLP, Into, Linear, stacked

DENSE, SPARSE = "dense", "sparse"
EXPERT = "layers.{i}.mlp.experts.{e}."
STACKED_EXPERTS: dict[str, str | Into] = {
    "model.layers.{i}.mlp.experts.gate_up_proj": stacked(EXPERT + "gate_up.weight", full_name=True),
    "model.layers.{i}.mlp.experts.down_proj": stacked(EXPERT + "down.weight", full_name=True),
}
"""Where the experts of a layer are stored in one tensor, as transformers 5 holds them."""


def sigmoid_route(c: Config, factor: float = 1.0, norm: bool = True, by_groups: bool = False) -> RouterSpec:
    """The experts with the best biased sigmoids: of all, or of the groups whose two best add up to most."""
    groups = {"num_groups": c.get("n_group", 1), "top_groups": c.get("topk_group", 1), "group_best": 2}
    return RouterSpec(
        c.num_experts_per_tok,
        norm=1.0 if norm else None,
        eps=1e-20,
        factor=factor,
        scores="sigmoid",
        is_biased=True,
        **(groups if by_groups else {}),
    )


def shared_experts(
    c: Config, route: Callable[[], RouterSpec], shared: int, bias: bool = False
) -> Callable[[], MoEWithShared]:
    """Experts of moe_intermediate_size, and as many as `shared` in one that every token goes through.

    `bias` is of that one.
    """
    expert, size = partial(GatedMLP, c.hidden_size, activation=c.hidden_act), c.moe_intermediate_size
    count = c.get("num_experts", 0)

    def make() -> MoEWithShared:
        router, experts = Linear(c.hidden_size, count, exact=True), [expert(size) for _ in range(count)]
        return MoEWithShared(router, experts, route(), expert(shared * size, bias=bias) if shared else None)

    return make


def by_layer(c: Config, types: Sequence[str], sparse: Callable[[], nn.Module], bias: bool = False) -> list[nn.Module]:
    """The feed-forward of each layer, by its type in mlp_layer_types: `sparse`, or one for all tokens."""
    if len(types) != c.num_hidden_layers:
        raise CheckpointError(f"config.json: mlp_layer_types has {len(types)} types for {c.num_hidden_layers} layers.")
    if unknown := set(types) - {DENSE, SPARSE}:
        raise UnsupportedModelError(f"config.json: mlp_layer_types has {min(unknown)[:60]!r}, which is unknown.")
    dense = gated_mlp(c, bias)
    return [sparse() if kind == SPARSE else dense() for kind in types]
