"""DeepSeek-V2 (DeepSeek-AI 2024) and MiniCPM3 (2024): latent attention; DeepSeek's with experts chosen by group."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from octavo.architectures.decoder import NAMES, decoder, gated_mlp, rms_norm
from octavo.architectures.deepseek import DEEPSEEK_NAMES, feed_forwards
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.latent_gguf import LATENT_PARTS, balances, latent_from_gguf
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import rope_settings
from octavo.errors import UnsupportedModelError
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, Embedding, Into, LatentAttention, PreNorm, QueryScale

LATENT: dict[str, str | Into] = {
    "model.layers.{i}.self_attn.q_proj": "layers.{i}.attn.q",
    "model.layers.{i}.self_attn.q_a_proj": "layers.{i}.attn.q_a",
    "model.layers.{i}.self_attn.q_a_layernorm": "layers.{i}.attn.q_norm",
    "model.layers.{i}.self_attn.q_b_proj": "layers.{i}.attn.q_b",
    "model.layers.{i}.self_attn.kv_a_proj_with_mqa": "layers.{i}.attn.kv_a",
    "model.layers.{i}.self_attn.kv_a_layernorm": "layers.{i}.attn.kv_norm",
    "model.layers.{i}.self_attn.kv_b_proj": "layers.{i}.attn.kv_b",
}


def latent_attention(
    c: Config,
    interleaved: bool,
    eps: float,
    query_scale: QueryScale | None = None,
    part: type[LatentAttention] = LatentAttention,
) -> Callable[..., LatentAttention]:
    """Makes the part that all these configs describe; where it has more arguments than LatentAttention, with these."""
    nope_dim, rope_dim, settings = c.qk_nope_head_dim, c.qk_rope_head_dim, rope_settings(c)
    # Under YaRN the scores are scaled by the square of its magnitude as well.
    magnitude = 0.1 * settings.get("mscale_all_dim", 0.0) * math.log(max(settings.get("factor", 1.0), 1.0)) + 1.0
    rope = make_rope(c, rope_dim, partial=False, interleaved=interleaved)
    return partial(
        part,
        c.hidden_size,
        c.num_attention_heads,
        rank=c.kv_lora_rank,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=c.get("v_head_dim", c.hidden_size // c.num_attention_heads),
        rope=rope,
        q_rank=c.get("q_lora_rank"),
        eps=eps,
        bias=c.attention_bias,
        scale=magnitude**2 * (nope_dim + rope_dim) ** -0.5,
        query_scale=query_scale,
    )


def make_route(c: Config) -> RouterSpec:
    """Routes to the likeliest experts: of all, or of the groups that have the likeliest ones."""
    top_k, by_groups = c.num_experts_per_tok, c.topk_method == "group_limited_greedy"
    if not by_groups and c.topk_method not in ("greedy", "gready"):  # as DeepSeek-V2-Lite's first config spells it
        raise UnsupportedModelError(f"config.json: topk_method {c.topk_method[:60]!r} is unknown.")
    groups, top_groups = (c.n_group, c.topk_group) if by_groups else (1, 1)
    if top_k > 1 and c.norm_topk_prob:
        return RouterSpec(top_k, norm=1.0, eps=1e-20, num_groups=groups, top_groups=top_groups)
    return RouterSpec(top_k, factor=c.routed_scaling_factor, num_groups=groups, top_groups=top_groups)


@architecture(
    "DeepseekV2ForCausalLM",
    about="DeepSeek-V2, DeepSeek-V2.5, DeepSeek-Coder-V2",
    examples=("deepseek-ai/DeepSeek-V2", "deepseek-ai/DeepSeek-V2-Chat", "deepseek-ai/DeepSeek-V2-Lite"),
    gguf=GGUFFormat("deepseek2", config=latent_from_gguf, joined=LATENT_PARTS, when=lambda file: not balances(file)),
)
def deepseek_v2(c: Config) -> CausalLM:
    norm, mlp = rms_norm(c), feed_forwards(c, make_route)
    attn = latent_attention(c, True, c.rms_norm_eps)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(), mlp=mlp(i)), DEEPSEEK_NAMES.replacing(LATENT))


def _minicpm3_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    # The multipliers of the 4B model are not in the file.
    return {
        **latent_from_gguf(shared, file),
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        "v_head_dim": None,
    }


@architecture(
    "MiniCPM3ForCausalLM",
    about="MiniCPM3",
    examples=("openbmb/MiniCPM3-4B",),
    gguf=GGUFFormat("minicpm3", config=_minicpm3_from_gguf),
)
def minicpm3(c: Config) -> CausalLM:
    """The norms inside attention keep their own epsilon, whatever the config says of the others."""
    norm, attn, mlp = rms_norm(c), latent_attention(c, False, 1e-6), gated_mlp(c)
    scale = c.get("scale_depth", c.num_hidden_layers**0.5) / c.num_hidden_layers**0.5
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(), mlp=mlp(), scale=scale),
        NAMES.replacing(LATENT),
        embed=Embedding(c.vocab_size, c.hidden_size, c.scale_emb),
        logit_scale=c.get("dim_model_base", c.hidden_size) / c.hidden_size,
    )
