"""Jais (Sengupta et al. 2023): GPT-2's body with ALiBi, a gated feed-forward, and the scales of muP."""

from functools import partial

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    Embedding,
    GatedMLP,
    LayerNorm,
    Names,
    PositionedEmbedding,
    PreNorm,
    alibi_slopes,
    transposed,
)


def names(alibi: bool, gated: bool) -> Names:
    mlp = "layers.{i}.mlp"
    up = {"c_fc": f"{mlp}.gate_up.up", "c_fc2": f"{mlp}.gate_up.gate"} if gated else {"c_fc": f"{mlp}.up"}
    return Names(
        {
            "transformer.wte": "embed" if alibi else "embed.tokens",
            "transformer.wpe": "embed.positions",
            "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
            "transformer.h.{i}.attn.c_attn": transposed("layers.{i}.attn.qkv"),
            "transformer.h.{i}.attn.c_proj": transposed("layers.{i}.attn.o"),
            "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
            **{f"transformer.h.{{i}}.mlp.{name}": transposed(path) for name, path in up.items()},
            "transformer.h.{i}.mlp.c_proj": transposed(f"{mlp}.down"),
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        ignored=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias", "transformer.relative_pe.slopes"),
        prefix="transformer.",
    )


@architecture(
    "JAISLMHeadModel",
    about="Jais",
    examples=("inceptionai/jais-13b", "inceptionai/jais-13b-chat", "inceptionai/jais-30b-v3"),
    # The scales of embeddings and logits are in the file's weights; ALiBi, the gate and the scores' scale are fixed.
    gguf=GGUFFormat(
        "jais",
        config=lambda shared, file: {
            "position_embedding_type": "alibi",
            "activation_function": "swiglu",
            "scale_qk_dot_by_d": True,
        },
        names={name: into.path for name, into in names(alibi=True, gated=True).table.items() if into.transform},
    ),
)
def jais(c: Config) -> CausalLM:
    hidden_size, num_heads = c.n_embd, c.n_head
    head_dim, intermediate_size = hidden_size // num_heads, c.get("n_inner", 4 * hidden_size)
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    by_width = c.first(
        "mup_scale_qk_dot_by_d",
        "scale_qk_dot_by_d",
    )
    alibi = c.position_embedding_type == "alibi"
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        num_heads,
        head_dim,
        bias=True,
        out_bias=True,
        scale=1.0 / head_dim if by_width else head_dim**-0.5,
        alibi=alibi_slopes(num_heads) if alibi else None,
    )
    activation = c.activation_function
    gated = activation == "swiglu"
    mlp = (
        partial(GatedMLP, hidden_size, intermediate_size, "silu", True)
        if gated
        else partial(MLP, hidden_size, intermediate_size, activation, True)
    )
    scale = c.first("mup_embeddings_scale", "embeddings_scale")
    embed = (
        Embedding(c.vocab_size, hidden_size, scale)
        if alibi
        else PositionedEmbedding(Embedding(c.vocab_size, hidden_size), Embedding(c.n_positions, hidden_size), scale)
    )
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(), mlp=mlp()),
        names(alibi, gated),
        embed=embed,
        logit_scale=c.mup_output_alpha * c.first("mup_width_scale", "width_scale"),
    )
