"""Kimi Linear (Kimi Team 2025): Kimi delta attention, latent attention without positions, DeepSeek-V3's experts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import decoder, rms_norm
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.deepseek_v2 import LATENT, latent_attention
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, log_of_negative
from octavo.architectures.latent_gguf import LATENT_PARTS, latent_from_gguf
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    CausalLM,
    DeltaSizes,
    GatedRMSNorm,
    Into,
    KimiDelta,
    LatentAttention,
    Names,
    PreNorm,
    RotaryEmbedding,
    of_layer,
    parameter,
)

ATTENTION, EXPERTS, PUBLISHED = "model.layers.{i}.self_attn.", "layers.{i}.mlp.", "model.layers.{i}.block_sparse_moe."
DELTA: dict[str, str | Into] = {
    ATTENTION + "{q|k|v|b}_proj": "layers.{i}.attn.in_proj.{q|k|v|b}",
    ATTENTION + "{f|g}_a_proj": "layers.{i}.attn.in_proj.{f|g}",
    ATTENTION + "{f|g}_b_proj": "layers.{i}.attn.{decay|gate}",
    ATTENTION + "{q|k|v}_conv1d": Into("layers.{i}.attn.conv.{q|k|v}", drop_middle),
    ATTENTION + "A_log": parameter("layers.{i}.attn.a_log", Tensor.flatten),
    ATTENTION + "dt_bias": parameter("layers.{i}.attn.dt_bias"),
    ATTENTION + "o_norm": "layers.{i}.attn.norm",
    ATTENTION + "o_proj": "layers.{i}.attn.out_proj",
}
FEED_FORWARD: dict[str, str | Into] = {
    PUBLISHED + "gate.e_score_correction_bias": parameter(EXPERTS + "choice_bias"),
    PUBLISHED + "{gate|up}_proj": EXPERTS + "gate_up.{gate|up}",
    PUBLISHED + "down_proj": EXPERTS + "down",
    PUBLISHED + "gate": EXPERTS + "router",
    PUBLISHED + "experts.{e}.{w1|w3}": EXPERTS + "experts.{e}.gate_up.{gate|up}",
    PUBLISHED + "experts.{e}.w2": EXPERTS + "experts.{e}.down",
    PUBLISHED + "shared_experts.{gate|up}_proj": EXPERTS + "shared.gate_up.{gate|up}",
    PUBLISHED + "shared_experts.down_proj": EXPERTS + "shared.down",
}


def _full_layers(c: Config) -> set[int]:
    """Those with latent attention. The lists of linear_attn_config count from 1."""
    types: list[str] = c.get("layer_types", [])
    if types:
        return {i for i, kind in enumerate(types) if kind == "full_attention"}
    if c.get("linear_attn_config", {}):
        numbers: list[int] = c.section("linear_attn_config").get("full_attn_layers", [])
        return {i - 1 for i in numbers}
    return set(range(4, c.num_hidden_layers, 4))


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    counts: list[int] = shared["num_key_value_heads"]
    return {
        **latent_from_gguf(shared, file),
        "layer_types": ["full_attention" if count else "linear_attention" for count in counts],
        "num_key_value_heads": shared["num_attention_heads"],
        "linear_num_heads": shared["num_attention_heads"],
        "linear_head_dim": file.value("kda.head_dim"),
        "linear_conv_kernel_dim": file.value("ssm.conv_kernel"),
        "moe_renormalize": True,
        "num_expert_group": shared.get("num_expert_group") or 1,
        "routed_scaling_factor": shared.get("routed_scaling_factor") or 1.0,
    }


@architecture(
    "KimiLinearForCausalLM",
    about="Kimi Linear",
    examples=("moonshotai/Kimi-Linear-48B-A3B-Instruct",),
    gguf=GGUFFormat(
        "kimi-linear",
        config=_from_gguf,
        names={"model.layers.{i}.mlp.{gate|up|down}_proj": EXPERTS + "{gate_up.gate|gate_up.up|down}"},
        undo={
            ATTENTION + "{q|k|v}_conv1d": lambda w, c: w.reshape(-1, w.shape[-1]),
            ATTENTION + "A_log": log_of_negative,
        },
        joined=LATENT_PARTS,
    ),
)
def kimi_linear(c: Config) -> CausalLM:
    c = c.replace(
        num_experts_per_tok=c.first("num_experts_per_token", "num_experts_per_tok", default=8),
        n_group=c.first("num_expert_group", "n_group", default=1),
    )
    own = c.section("linear_attn_config") if c.get("linear_attn_config", {}) else c.replace()
    head_dim = own.first("head_dim", default=c.linear_head_dim) if own.path != c.path else c.linear_head_dim
    heads = own.first("num_heads", default=c.linear_num_heads)
    kernel = own.first("short_conv_kernel_size", default=c.linear_conv_kernel_dim)
    renormalize = c.first("moe_renormalize", "norm_topk_prob", default=True)
    shared = c.first("num_shared_experts", "n_shared_experts", default=1)
    sparse = shared_experts(c, lambda: sigmoid_route(c, c.routed_scaling_factor, renormalize, by_groups=True), shared)
    dense = c.get("first_k_dense_replace", 1)
    types = [DENSE if i < dense else SPARSE for i in range(c.num_hidden_layers)]
    mlp, full = by_layer(c, c.get("mlp_layer_types", types), sparse), _full_layers(c)
    still = RotaryEmbedding(torch.zeros(c.qk_rope_head_dim // 2, device="cpu"))  # positions do not count
    latent: Callable[..., LatentAttention] = latent_attention(c, False, 1e-6)
    norm, sizes = rms_norm(c), DeltaSizes(heads, heads, head_dim, head_dim, kernel)

    def layer(i: int) -> PreNorm:
        if i in full:
            return PreNorm(norm, attn=latent(rope=still), mlp=mlp[i])
        gated = GatedRMSNorm(head_dim, c.rms_norm_eps, "sigmoid")
        delta = KimiDelta(c.hidden_size, sizes, activation=c.hidden_act, norm=gated)
        return PreNorm(norm, attn=delta, mlp=mlp[i])

    table = dict[str, str | Into]()
    for i in range(c.num_hidden_layers):
        table |= of_layer({**LATENT, ATTENTION + "o_proj": "layers.{i}.attn.o"} if i in full else DELTA, i)
    shared_names = DEEPSEEK_NAMES.table
    return decoder(c, norm, layer, Names({**table, **FEED_FORWARD, **shared_names}, prefix="model."))
