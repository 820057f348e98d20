"""BLOOM (BigScience 2022): positions by ALiBi, a norm behind the embedding."""

from functools import partial

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    Block,
    CausalLM,
    Embedding,
    FromNormed,
    LayerNorm,
    Linear,
    Names,
    NormedEmbedding,
    Residual,
    alibi_slopes,
    grouped_qkv,
)


def names(num_heads: int, head_dim: int) -> Names:
    return Names(
        {
            "transformer.word_embeddings": "embed.tokens",
            "transformer.word_embeddings_layernorm": "embed.norm",
            "transformer.h.{i}.input_layernorm": "layers.{i}.attention.norm",
            "transformer.h.{i}.self_attention.query_key_value": grouped_qkv(
                "layers.{i}.attention.inner.qkv", num_heads, 1, head_dim
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


@architecture(
    "BloomForCausalLM",
    about="BLOOM, BLOOMZ, BLOOMChat",
    examples=("bigscience/bloom", "bigscience/bloomz"),
    gguf=GGUFFormat(
        "bloom", names={"transformer.h.{i}.self_attention.query_key_value": "layers.{i}.attention.inner.qkv"}
    ),
)
def bloom(c: Config) -> CausalLM:
    hidden_size, num_heads = c.hidden_size, c.n_head
    head_dim = hidden_size // num_heads
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    slopes = alibi_slopes(num_heads)
    attention = partial(Attention, hidden_size, num_heads, num_heads, head_dim, bias=True, out_bias=True, alibi=slopes)
    mlp = partial(MLP, hidden_size, 4 * hidden_size, "gelu_new", bias=True)
    residual = FromNormed if c.apply_residual_connection_post_layernorm else Residual
    return CausalLM(
        embed=NormedEmbedding(Embedding(c.vocab_size, hidden_size), norm()),
        layer=lambda i: Block(attention=residual(norm(), attention()), mlp=residual(norm(), mlp())),
        layers=c.n_layer,
        norm=norm(),
        head=None if c.tie_word_embeddings else Linear(hidden_size, c.vocab_size),
        names=names(num_heads, head_dim),
    )
