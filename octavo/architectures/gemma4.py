"""Gemma 4 (Google 2026), text: heads and rope by layer kind, shared keys and values, per-layer vectors, experts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import decoder
from octavo.architectures.gemma4_gguf import GEMMA4_FORMAT
from octavo.architectures.gemma4_layer import Gemma4Layer, ScaledExperts
from octavo.architectures.gemma4_names import GEMMA4_NAMES, PER_LAYER_NAMES, in_composite
from octavo.architectures.gemma4_shared_keys import shared_keys, unread_keys
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.errors import UnsupportedModelError
from octavo.parts import (
    AliasedEmbedding,
    CausalLM,
    Embedding,
    GatedMLP,
    MoE,
    Names,
    PerLayerEmbedding,
    PerLayerInput,
    PlainRMSNorm,
    QKNorm,
    RMSNorm,
    SharedAttention,
    softmax_then_topk,
)

ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
GLOBAL_HEAD_DIM = 512


def _attention(c: Config, types: Sequence[str], shares: Sequence[dict[str, Any]]) -> Callable[[int], SharedAttention]:
    overrides: dict[str, dict[str, Any]] = c.get("per_layer_config", {})
    own_keys = c.get("attention_k_eq_v", False)
    full = {"head_dim": c.get("global_head_dim", GLOBAL_HEAD_DIM)}
    if own_keys and c.get("num_global_key_value_heads") is not None:
        full["num_key_value_heads"] = c.num_global_key_value_heads
    if not c.get("rope_parameters"):
        c = c.replace(rope_parameters={kind: ROPES[kind] for kind in set(types)})

    def make(i: int) -> SharedAttention:
        kind = types[i]
        own = c.replace(**(overrides.get(str(i), full) if kind == FULL else overrides.get(str(i), {})))
        head_dim, reads = own.head_dim, shares[i].get("reads", False)
        norm, plain = partial(RMSNorm, head_dim, c.rms_norm_eps), partial(PlainRMSNorm, head_dim, c.rms_norm_eps)
        return SharedAttention(
            c.hidden_size,
            c.num_attention_heads,
            own.num_key_value_heads,
            head_dim,
            **shares[i],
            values_are_keys=own_keys and kind == FULL,
            rope=make_rope(own, head_dim, layer=kind, layers=types),
            qk_transform=QKNorm(norm(), None if reads else norm(), v=None if reads else plain()),
            bias=c.attention_bias,
            out_bias=c.attention_bias,
            window=c.sliding_window if kind == SLIDING else None,
            scale=1.0,
        )

    return make


def _layer(c: Config, types: Sequence[str], shares: Sequence[dict[str, Any]]) -> Callable[[int], Gemma4Layer]:
    size, activation, per_layer = c.hidden_size, c.hidden_activation, c.get("hidden_size_per_layer_input", 0)
    norm, attn = partial(RMSNorm, size, c.rms_norm_eps), _attention(c, types, shares)
    is_wide = c.get("use_double_wide_mlp", False)

    def experts() -> MoE:
        each = [GatedMLP(size, c.moe_intermediate_size, activation) for _ in range(c.num_experts)]
        return ScaledExperts(norm(), norm(), each, softmax_then_topk(c.top_k_experts))

    def make(i: int) -> Gemma4Layer:
        width = c.intermediate_size * (2 if is_wide and shares[i].get("reads") else 1)
        return Gemma4Layer(
            norm,
            attn=attn(i),
            mlp=GatedMLP(size, width, activation),
            moe=experts() if c.get("enable_moe_block", False) else None,
            per_layer=PerLayerInput(size, per_layer, i, activation) if per_layer else None,
        )

    return make


def _embedding(c: Config) -> nn.Module:
    placeholders = [c.get(f"{kind}_token_id") for kind in ("image", "video", "audio")]
    aliases = {token: c.get("pad_token_id", 0) for token in placeholders if token is not None and token < c.vocab_size}
    tokens = AliasedEmbedding(c.vocab_size, c.hidden_size, c.hidden_size**0.5, aliases=aliases)
    own, count = c.get("hidden_size_per_layer_input", 0), c.get("vocab_size_per_layer_input", c.vocab_size)
    if not own:
        return tokens
    size = c.num_hidden_layers * own
    table = AliasedEmbedding(count, size, own**0.5, aliases=aliases, vocab_size=c.vocab_size)
    return PerLayerEmbedding(tokens, table, RMSNorm(own, c.rms_norm_eps))


@architecture("Gemma4ForCausalLM", about="Gemma 4 (text)", examples=("google/gemma-4-31B-it",), gguf=GEMMA4_FORMAT)
def gemma4(c: Config) -> CausalLM:
    count = c.num_hidden_layers
    types = layer_types(c, [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)])
    types = [*types[:-1], FULL]  # whatever the config says
    if c.get("use_bidirectional_attention") == "all":
        raise UnsupportedModelError("config.json: use_bidirectional_attention 'all' is not supported.")
    shares, embed = shared_keys(c, types), _embedding(c)
    names = PER_LAYER_NAMES.extended(GEMMA4_NAMES)
    if isinstance(embed, Embedding):
        names = names.replacing({"model.embed_tokens": "embed"})
    return decoder(
        c,
        partial(RMSNorm, c.hidden_size, c.rms_norm_eps),
        _layer(c, types, shares),
        Names(names.table, (*names.ignored, *unread_keys(shares)), names.prefix),
        embed=embed,
        softcap=c.get("final_logit_softcapping"),
        optional=tuple(f"layers.{i}.scalar" for i in range(count)),
        tied=c.get("tie_word_embeddings", True),
        tied_if_absent=True,
    )


@architecture(
    "Gemma4ForConditionalGeneration",
    about="Gemma 4 (text of it: pictures and sounds are not taken yet)",
    examples=("google/gemma-4-E2B-it", "google/gemma-4-26B-A4B-it"),
    read_as="gemma4",
)
def gemma4_of_media(c: Config) -> CausalLM:
    shared = {key: c.get(key) for key in ("image_token_id", "video_token_id", "audio_token_id")}
    text = c.section("text_config").replace(**shared, tie_word_embeddings=c.get("tie_word_embeddings", True))
    model = gemma4(text)
    model.names = in_composite(model.names)
    return model
