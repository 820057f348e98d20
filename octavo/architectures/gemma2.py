"""Gemma 2 (Gemma Team 2024): norms before and after each piece, capped scores and logits, windows on even layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from octavo.architectures.decoder import NAMES, attention, decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, minus_one
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import CausalLM, Embedding, GatedMLP, RMSNorm, SandwichNorm

GEMMA2_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.post_attention_layernorm": "layers.{i}.attn_post_norm",
        "model.layers.{i}.pre_feedforward_layernorm": "layers.{i}.mlp_norm",
        "model.layers.{i}.post_feedforward_layernorm": "layers.{i}.mlp_post_norm",
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    hidden_size, num_heads, layers = shared["hidden_size"], shared["num_attention_heads"], shared["num_hidden_layers"]
    # The scale of the scores is not in the file: it is head_dim, but for 27B hidden_size over the heads.
    scalar = hidden_size // num_heads if layers == 46 else shared.get("head_dim", hidden_size // num_heads)
    return {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


@architecture(
    "Gemma2ForCausalLM",
    about="Gemma 2",
    examples=("google/gemma-2-9b", "google/gemma-2-27b"),
    gguf=GGUFFormat(
        "gemma2",
        config=_from_gguf,
        undo={name: minus_one for name in GEMMA2_NAMES.table if name.endswith("norm")},
    ),
)
@architecture("Gemma2Model", about="Gemma2-based embedders", examples=("BAAI/bge-multilingual-gemma2",), tasks=EMBEDS)
def gemma2(c: Config) -> CausalLM:
    types = layer_types(c, [FULL if i % 2 else SLIDING for i in range(c.num_hidden_layers)])
    return gemma_body(c, c, types)


def gemma_body(c: Config, ropes: Config, types: Sequence[str], **options: Any) -> CausalLM:
    """What Gemma 2 and 3 have alike.

    Args:
        ropes: the config whose rotary positions count.
        types: of the layers.
        options: more of `attention`'s arguments.
    """
    size, bias = c.hidden_size, c.attention_bias
    norm = partial(RMSNorm, size, c.rms_norm_eps, 1.0)
    attn = attention(
        ropes,
        window=[c.get("sliding_window") if kind == SLIDING else None for kind in types],
        bias=bias,
        out_bias=bias,
        scale=c.query_pre_attn_scalar**-0.5,
        softcap=c.get("attn_logit_softcapping"),
        **options,
    )
    mlp = partial(GatedMLP, size, c.intermediate_size, c.hidden_activation)
    return decoder(
        c,
        norm,
        lambda i: SandwichNorm(norm, attn=attn(i), mlp=mlp()),
        GEMMA2_NAMES,
        embed=Embedding(c.vocab_size, size, size**0.5),
        softcap=c.get("final_logit_softcapping"),
    )
