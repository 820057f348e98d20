"""BLOOM (BigScience 2022) and MPT (MosaicML 2023): positions by ALiBi, no rotary."""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    Block,
    CausalLM,
    Clip,
    Embedding,
    FromNormed,
    LayerNorm,
    Linear,
    Names,
    NormedEmbedding,
    PositionedEmbedding,
    QKNorm,
    Residual,
    alibi_slopes,
    grouped_qkv,
)


def bloom_names(heads: int, head_dim: int) -> Names:
    return Names(
        {
            "transformer.word_embeddings": "embed.tokens",
            "transformer.word_embeddings_layernorm": "embed.norm",
            "transformer.h.{i}.input_layernorm": "layers.{i}.attention.norm",
            "transformer.h.{i}.self_attention.query_key_value": grouped_qkv(
                "layers.{i}.attention.inner.qkv", heads, 1, head_dim
            ),
            "transformer.h.{i}.self_attention.dense": "layers.{i}.attention.inner.o",
            "transformer.h.{i}.post_attention_layernorm": "layers.{i}.mlp.norm",
            "transformer.h.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.inner.up",
            "transformer.h.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.inner.down",
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


@architecture("BloomForCausalLM", about="BLOOM, BLOOMZ, BLOOMChat", examples=("bigscience/bloom", "bigscience/bloomz"))
def bloom(c: Config) -> CausalLM:
    width, heads = c.first("hidden_size", "n_embed"), c.first("n_head", "num_attention_heads")
    head_dim = width // heads
    norm = partial(LayerNorm, width, c.get("layer_norm_epsilon", 1e-5))
    slopes = alibi_slopes(heads)
    attention = partial(Attention, width, heads, heads, head_dim, bias=True, out_bias=True, alibi=slopes)
    mlp = partial(MLP, width, 4 * width, "gelu_new", bias=True)
    residual = FromNormed if c.get("apply_residual_connection_post_layernorm", False) else Residual
    return CausalLM(
        embed=NormedEmbedding(Embedding(c.vocab_size, width), norm()),
        layer=lambda i: Block(attention=residual(norm(), attention()), mlp=residual(norm(), mlp())),
        layers=c.first("n_layer", "num_hidden_layers"),
        norm=norm(),
        head=None if c.get("tie_word_embeddings", True) else Linear(width, c.vocab_size),
        names=bloom_names(heads, head_dim),
    )


def mpt_names(clipped: bool) -> Names:
    adjust = "layers.{i}.attention.inner.adjust" + (".after" if clipped else "")
    return Names(
        {
            "transformer.wte": "embed.tokens",
            "transformer.wpe": "embed.positions",
            "transformer.blocks.{i}.norm_1": "layers.{i}.attention.norm",
            "transformer.blocks.{i}.attn.Wqkv": "layers.{i}.attention.inner.qkv",
            "transformer.blocks.{i}.attn.{q|k}_ln": adjust + ".{q|k}",
            "transformer.blocks.{i}.attn.out_proj": "layers.{i}.attention.inner.o",
            "transformer.blocks.{i}.norm_2": "layers.{i}.mlp.norm",
            "transformer.blocks.{i}.ffn.up_proj": "layers.{i}.mlp.inner.up",
            "transformer.blocks.{i}.ffn.down_proj": "layers.{i}.mlp.inner.down",
            "transformer.norm_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


@architecture(
    "MPTForCausalLM",
    "MptForCausalLM",
    about="MPT, MPT-Instruct, MPT-Chat, MPT-StoryWriter",
    examples=("mosaicml/mpt-7b", "mosaicml/mpt-7b-storywriter", "mosaicml/mpt-30b"),
)
def mpt(c: Config) -> CausalLM:
    width, heads, bias = c.d_model, c.n_heads, not c.get("no_bias", True)
    settings: dict[str, Any] = c.get("attn_config", {})
    head_dim, eps = width // heads, c.get("layer_norm_epsilon", 1e-5)
    kv_heads = settings.get("kv_n_heads") or (1 if settings.get("attn_type") == "multiquery_attention" else heads)
    limit = settings.get("clip_qkv")
    norm = partial(LayerNorm, width, eps, bias=bias)

    def adjust() -> nn.Module | None:
        """Clipped first, then normed over the full width."""
        norms = None
        if settings.get("qk_ln", False):
            q, k = LayerNorm(width, eps, bias=bias), LayerNorm(kv_heads * head_dim, eps, bias=bias)
            norms = QKNorm(heads, kv_heads, q, k, full_width=True)
        return norms if limit is None else Clip(limit, norms)

    alibi = settings.get("alibi", False)
    attention = partial(
        Attention,
        width,
        heads,
        kv_heads,
        head_dim,
        bias=bias,
        out_bias=bias,
        scale=settings.get("softmax_scale"),
        alibi=alibi_slopes(heads, settings.get("alibi_bias_max", 8)) if alibi else None,
    )
    mlp = partial(MLP, width, int(c.get("expansion_ratio", 4) * width), "gelu", bias=bias)
    tokens = Embedding(c.vocab_size, width)
    learned = c.get("learned_pos_emb", True) and not alibi
    embed = PositionedEmbedding(tokens, Embedding(c.max_seq_len, width)) if learned else tokens
    scale: float | str = c.get("logit_scale", 1.0)
    table = mpt_names(limit is not None).table
    if not learned:
        table = {**table, "transformer.wte": "embed"}
    return CausalLM(
        embed=embed,
        layer=lambda i: Block(attention=Residual(norm(), attention(adjust=adjust())), mlp=Residual(norm(), mlp())),
        layers=c.n_layers,
        norm=norm(),
        head=None if c.get("tie_word_embeddings", True) else Linear(width, c.vocab_size),
        names=Names(table, prefix="transformer."),
        logit_scale=width**-0.5 if scale == "inv_sqrt_d_model" else float(scale),
    )
