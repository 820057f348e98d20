"""Hunyuan A13B and 3 (Tencent 2025) and MiniMax-M2 (MiniMax 2025): many experts."""

from collections.abc import Callable
from functools import partial
from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import (
    NAMES,
    attention,
    decoder,
    gated_mlp,
    head_norms,
    moe,
    rms_norm,
    without_more_layers,
)
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import MIMO, after_layers
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, Linear, PreNorm, QKNorm, RMSNorm, RotatedQKNorm, parameter, softmax_then_topk

EXPERTS, CHOICE_BIAS = "layers.{i}.mlp.experts.{e}", "layers.{i}.mlp.choice_bias"
HY_V3_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.mlp.router.gate": "layers.{i}.mlp.router",
        "model.layers.{i}.mlp.expert_bias": parameter(CHOICE_BIAS),
        "model.layers.{i}.mlp.shared_mlp.{gate|up}_proj": "layers.{i}.mlp.shared.gate_up.{gate|up}",
        "model.layers.{i}.mlp.shared_mlp.down_proj": "layers.{i}.mlp.shared.down",
    }
)
HUNYUAN_NAMES = HY_V3_NAMES.replacing(
    {
        "model.layers.{i}.mlp.gate.wg": "layers.{i}.mlp.router",
        "model.layers.{i}.self_attn.{query|key}_layernorm": "layers.{i}.attn.qk_transform.{q|k}",
    }
)
MINIMAX_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.block_sparse_moe.e_score_correction_bias": parameter(CHOICE_BIAS),
        "model.layers.{i}.block_sparse_moe.gate": "layers.{i}.mlp.router",
        "model.layers.{i}.block_sparse_moe.experts.{e}.{w1|w3}": EXPERTS + ".gate_up.{gate|up}",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2": EXPERTS + ".down",
    }
)


def rotated_norms(c: Config) -> Callable[[], RotatedQKNorm]:
    """Hunyuan's norms of each head, after positions are applied."""
    head_dim = c.get("head_dim", c.hidden_size // c.num_attention_heads)
    return lambda: RotatedQKNorm(RMSNorm(head_dim, c.rms_norm_eps), RMSNorm(head_dim, c.rms_norm_eps))


def _of_experts(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """The size of experts is the only one."""
    return {"intermediate_size": file.value("expert_feed_forward_length")}


@architecture(
    "HunYuanDenseV1ForCausalLM",
    about="Hunyuan dense",
    examples=("tencent/Hunyuan-7B-Instruct",),
    gguf=GGUFFormat("hunyuan-dense"),
)
def hunyuan_dense(c: Config) -> CausalLM:
    norm, mlp, bias = rms_norm(c), gated_mlp(c), c.attention_bias
    attn = attention(c, qk_transform=rotated_norms(c), bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), HUNYUAN_NAMES)


@architecture(
    "HunYuanMoEV1ForCausalLM",
    about="Hunyuan A13B",
    examples=("tencent/Hunyuan-A13B-Instruct",),
    gguf=GGUFFormat("hunyuan-moe", config=lambda shared, file: {"moe_topk": file.value("expert_used_count")}),
)
def hunyuan_moe(c: Config) -> CausalLM:
    """Experts and the one for all are of intermediate_size; how many are chosen may be a list by layer."""
    norm, bias, expert, top_k = rms_norm(c), c.attention_bias, gated_mlp(c), c.get("moe_topk", 1)
    attn = attention(c, qk_transform=rotated_norms(c), bias=bias, out_bias=bias)

    def mlp(layer: int) -> MoEWithShared:
        count = c.num_experts
        route = softmax_then_topk(top_k if isinstance(top_k, int) else top_k[layer])
        return MoEWithShared(
            Linear(c.hidden_size, count, exact=True), [expert() for _ in range(count)], route, expert()
        )

    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(i)), HUNYUAN_NAMES)


@architecture("HYV3ForCausalLM", about="Hunyuan 3", examples=("tencent/Hy3-preview",))
def hy_v3(c: Config) -> CausalLM:
    norm, bias = rms_norm(c), c.attention_bias
    attn = attention(c, qk_transform=head_norms(c), bias=bias, out_bias=bias)
    route = partial(sigmoid_route, c, c.router_scaling_factor)
    types = c.get("mlp_layer_types", [DENSE, *[SPARSE] * (c.num_hidden_layers - 1)])
    sparse = shared_experts(c, route, c.get("num_shared_experts", 0), c.mlp_bias)
    mlp, names = by_layer(c, types, sparse, c.mlp_bias), without_more_layers(c, HY_V3_NAMES)
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp[i]), names)
    return after_layers(model, c, norm, lambda: PreNorm(norm, attn=attn(0), mlp=sparse()), MIMO)


@architecture(
    "MiniMaxM2ForCausalLM",
    about="MiniMax-M2",
    examples=("MiniMaxAI/MiniMax-M2",),
    gguf=GGUFFormat("minimax-m2", config=_of_experts),
)
def minimax_m2(c: Config) -> CausalLM:
    """Norms of queries and of keys over all heads at once, of which a part of each is rotated."""
    num_heads, num_kv_heads, head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    if (rotated := c.get("rotary_dim")) is not None:
        c = c.replace(partial_rotary_factor=rotated / head_dim)
    query, key = (partial(RMSNorm, heads * head_dim, c.rms_norm_eps) for heads in (num_heads, num_kv_heads))
    attn = attention(c, qk_transform=lambda: QKNorm(query(), key(), full_width=True))
    route = RouterSpec(c.num_experts_per_tok, norm=1.0, scores="sigmoid", is_biased=True)
    norm, mlp = rms_norm(c), moe(c, gated_mlp(c), c.num_local_experts, route)
    names = without_more_layers(c, MINIMAX_NAMES)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), names)
