"""Qwen3-Next (Qwen Team 2025): gated delta nets, and gated attention in every fourth layer."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.balanced_experts import STACKED_EXPERTS
from octavo.architectures.decoder import attention, decoder, gated_mlp
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import QWEN, Published, beside
from octavo.architectures.qwen2_moe import QWEN2_MOE_NAMES, MoEWithGatedShared
from octavo.architectures.qwen3_next_gguf import gated_net_format
from octavo.architectures.registry import architecture
from octavo.parts import (
    CausalLM,
    DeltaNet,
    DeltaSizes,
    GatedAttention,
    GatedMLP,
    GatedRMSNorm,
    Into,
    Linear,
    Names,
    PreNorm,
    QKNorm,
    RMSNorm,
    gates_first,
    parameter,
    softmax_then_topk,
)

NET = "model.layers.{i}.linear_attn."
SHARED: dict[str, str | Into] = {
    NET + "conv1d.weight": parameter("layers.{i}.attn.conv.weight", drop_middle),
    NET + "A_log": parameter("layers.{i}.attn.a_log"),
    NET + "dt_bias": parameter("layers.{i}.attn.dt_bias"),
    NET + "norm": "layers.{i}.attn.norm",
    NET + "out_proj": "layers.{i}.attn.out_proj",
    **STACKED_EXPERTS,
}


def _by_key_head(path: str, c: Config, sizes: tuple[int, ...]) -> Into:
    """For a weight that has, by key head, so many outputs of each kind."""

    def regroup(weight: Tensor) -> Tensor:
        if len(weight) != c.linear_num_key_heads * sum(sizes):
            return weight  # whose shape the loader refuses
        heads = weight.reshape(c.linear_num_key_heads, sum(sizes), *weight.shape[1:])
        return torch.cat([part.flatten(0, 1) for part in torch.split(heads, list(sizes), dim=1)])

    return Into(path, regroup)


def _delta_net(c: Config, joined: tuple[str, ...]) -> DeltaNet:
    heads, dims = (c.linear_num_value_heads, c.linear_num_key_heads), (c.linear_key_head_dim, c.linear_value_head_dim)
    norm = GatedRMSNorm(c.linear_value_head_dim, c.rms_norm_eps, "silu")
    sizes = DeltaSizes(*heads, *dims, c.linear_conv_kernel_dim, c.get("linear_heads_in_turn", False))
    return DeltaNet(c.hidden_size, sizes, activation=c.hidden_act, norm=norm, joined=joined)


def gated_body(c: Config, names: Names, joined: tuple[str, ...], mlp: Callable[[int], nn.Module]) -> CausalLM:
    """Norms have 1 added to their weights, but for the gated one."""
    norm, head_norm = (partial(RMSNorm, size, c.rms_norm_eps, 1.0) for size in (c.hidden_size, c.head_dim))
    c = c.replace(partial_rotary_factor=c.first("partial_rotary_factor", default=0.25))
    biases = {"bias": c.attention_bias, "out_bias": c.attention_bias}
    part = partial(GatedAttention, joined=True)
    attn = attention(c, part=part, qk_transform=lambda: QKNorm(head_norm(), head_norm()), **biases)
    every = c.get("full_attention_interval", 4)
    by_count = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(c.num_hidden_layers)]
    types: list[str] = c.get("layer_types", by_count)

    def layer(i: int) -> PreNorm:
        mixer = attn(i) if types[i] == "full_attention" else _delta_net(c, joined)
        return PreNorm(norm, attn=mixer, mlp=mlp(i))

    model, last = decoder(c, norm, layer, names), c.num_hidden_layers - 1

    def predictor() -> PreNorm:
        return PreNorm(norm, attn=attn(last), mlp=mlp(last))

    return beside(model, c, norm, predictor, Published("mtp.", "mtp.layers.0.", QWEN))


def shared_experts(c: Config, renormalize: bool) -> MoEWithGatedShared:
    gated, count = partial(GatedMLP, c.hidden_size, activation=c.hidden_act), c.num_experts
    router, route = Linear(c.hidden_size, count, exact=True), softmax_then_topk(c.num_experts_per_tok, renormalize)
    experts = [gated(c.moe_intermediate_size) for _ in range(count)]
    return MoEWithGatedShared(router, experts, route, gated(c.shared_expert_intermediate_size))


@architecture(
    "Qwen3NextForCausalLM",
    about="Qwen3-Next",
    examples=("Qwen/Qwen3-Next-80B-A3B-Instruct",),
    gguf=gated_net_format("qwen3next", "model.", in_turn=False),
)
def qwen3_next(c: Config) -> CausalLM:
    heads = c.linear_num_value_heads // c.linear_num_key_heads
    values, dense = heads * c.linear_value_head_dim, gated_mlp(c)
    plain: list[int] = c.get("mlp_only_layers", [])

    def mlp(layer: int) -> nn.Module:
        is_dense = layer in plain or c.num_experts == 0 or (layer + 1) % c.decoder_sparse_step
        return dense() if is_dense else shared_experts(c, c.norm_topk_prob)

    key_dim = c.linear_key_head_dim
    table = {
        **SHARED,
        NET + "in_proj_qkvz": _by_key_head("layers.{i}.attn.in_proj.qkvz", c, (key_dim, key_dim, values, values)),
        NET + "in_proj_{qkv|z}": "layers.{i}.attn.in_proj.{qkv|z}",
        NET + "in_proj_ba": _by_key_head("layers.{i}.attn.in_proj.ba", c, (heads, heads)),
        "model.layers.{i}.self_attn.q_proj": gates_first("layers.{i}.attn.qkv.gate_q", c.num_attention_heads),
    }
    joined = ("qkv", "z", "ba") if c.get("linear_qkv_apart", False) else ("qkvz", "ba")
    return gated_body(c, QWEN2_MOE_NAMES.extended(table).leaving_out("mtp."), joined, mlp)
