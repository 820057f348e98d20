"""BLOOM (BigScience 2022): positions by ALiBi, a norm behind the embedding."""

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
    FromNormed,
    LayerNorm,
    Names,
    NormedEmbedding,
    PreNorm,
    alibi_slopes,
    grouped_qkv,
)


def names(num_heads: int, head_dim: int) -> Names:
    return Names(
        {
            "transformer.word_embeddings": "embed.tokens",
            "transformer.word_embeddings_layernorm": "embed.norm",
            "transformer.h.{i}.input_layernorm": "layers.{i}.attn_norm",
            "transformer.h.{i}.self_attention.query_key_value": grouped_qkv(
                "layers.{i}.attn.qkv", num_heads, 1, head_dim
            ),
            "transformer.h.{i}.self_attention.dense": "layers.{i}.attn.o",
            "transformer.h.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
            "transformer.h.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
            "transformer.h.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


@architecture(
    "BloomForCausalLM",
    about="BLOOM, BLOOMZ, BLOOMChat",
    examples=("bigscience/bloom", "bigscience/bloomz"),
    gguf=GGUFFormat("bloom", names={"transformer.h.{i}.self_attention.query_key_value": "layers.{i}.attn.qkv"}),
)
def bloom(c: Config) -> CausalLM:
    hidden_size, num_heads = c.hidden_size, c.n_head
    head_dim = hidden_size // num_heads
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    slopes = alibi_slopes(num_heads)
    attn = partial(Attention, hidden_size, num_heads, num_heads, head_dim, bias=True, out_bias=True, alibi=slopes)
    mlp = partial(MLP, hidden_size, 4 * hidden_size, "gelu_new", bias=True)
    wiring = FromNormed if c.apply_residual_connection_post_layernorm else PreNorm
    return decoder(
        c,
        norm,
        lambda i: wiring(norm, attn=attn(), mlp=mlp()),
        names(num_heads, head_dim),
        embed=NormedEmbedding(Embedding(c.vocab_size, hidden_size), norm()),
    )
