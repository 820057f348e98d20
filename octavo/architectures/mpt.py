"""MPT (MosaicML 2023): positions by ALiBi or learned, queries, keys and values clipped and normed in some models."""

from functools import partial
from typing import Any

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    Clip,
    Embedding,
    LayerNorm,
    Names,
    PositionedEmbedding,
    PreNorm,
    QKNorm,
    QKTransform,
    alibi_slopes,
)


def names(clipped: bool) -> Names:
    qk_transform = "layers.{i}.attn.qk_transform" + (".after" if clipped else "")
    return Names(
        {
            "transformer.wte": "embed.tokens",
            "transformer.wpe": "embed.positions",
            "transformer.blocks.{i}.norm_1": "layers.{i}.attn_norm",
            "transformer.blocks.{i}.attn.Wqkv": "layers.{i}.attn.qkv",
            "transformer.blocks.{i}.attn.{q|k}_ln": qk_transform + ".{q|k}",
            "transformer.blocks.{i}.attn.out_proj": "layers.{i}.attn.o",
            "transformer.blocks.{i}.norm_2": "layers.{i}.mlp_norm",
            "transformer.blocks.{i}.ffn.up_proj": "layers.{i}.mlp.up",
            "transformer.blocks.{i}.ffn.down_proj": "layers.{i}.mlp.down",
            "transformer.norm_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    bias_max = file.value("attention.max_alibi_bias", 0.0)
    return {
        "d_model": shared["hidden_size"],
        "n_heads": shared["num_attention_heads"],
        "n_layers": shared["num_hidden_layers"],
        "max_seq_len": shared["max_position_embeddings"],
        "expansion_ratio": shared["intermediate_size"] / shared["hidden_size"],
        "no_bias": not shared["attention_bias"],
        "logit_scale": None,
        "attn_config": {
            "alibi": bias_max > 0,
            "alibi_bias_max": bias_max,
            "clip_qkv": shared.get("clip_qkv"),
            "kv_n_heads": shared.get("num_key_value_heads"),
            "qk_ln": "blk.0.attn_q_norm.weight" in file.tensors,
        },
    }


@architecture(
    "MPTForCausalLM",
    "MptForCausalLM",
    about="MPT, MPT-Instruct, MPT-Chat, MPT-StoryWriter",
    examples=("mosaicml/mpt-7b", "mosaicml/mpt-7b-storywriter", "mosaicml/mpt-30b"),
    gguf=GGUFFormat("mpt", config=_from_gguf),
)
def mpt(c: Config) -> CausalLM:
    hidden_size, num_heads, bias = c.d_model, c.n_heads, not c.no_bias
    settings = c.section("attn_config")
    head_dim, eps = hidden_size // num_heads, c.layer_norm_epsilon
    num_kv_heads = settings.get("kv_n_heads") or (1 if settings.attn_type == "multiquery_attention" else num_heads)
    limit = settings.get("clip_qkv")
    norm = partial(LayerNorm, hidden_size, eps, bias=bias)

    def qk_transform() -> QKTransform | None:
        """Clipped first, then normed over all heads at once."""
        norms = None
        if settings.qk_ln:
            q, k = LayerNorm(hidden_size, eps, bias=bias), LayerNorm(num_kv_heads * head_dim, eps, bias=bias)
            norms = QKNorm(q, k, full_width=True)
        return norms if limit is None else Clip(limit, norms)

    alibi = settings.alibi
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        num_kv_heads,
        head_dim,
        bias=bias,
        out_bias=bias,
        scale=settings.get("softmax_scale"),
        alibi=alibi_slopes(num_heads, settings.alibi_bias_max) if alibi else None,
    )
    mlp = partial(MLP, hidden_size, int(c.expansion_ratio * hidden_size), "gelu", bias=bias)
    tokens = Embedding(c.vocab_size, hidden_size)
    learned = c.learned_pos_emb and not alibi
    embed = PositionedEmbedding(tokens, Embedding(c.max_seq_len, hidden_size)) if learned else tokens
    scale: float | str = c.get("logit_scale", 1.0)
    table = names(limit is not None)
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(qk_transform=qk_transform()), mlp=mlp()),
        table if learned else table.replacing({"transformer.wte": "embed"}),
        embed=embed,
        logit_scale=hidden_size**-0.5 if scale == "inv_sqrt_d_model" else float(scale),
    )
