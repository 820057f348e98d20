"""Gemma 2 (Gemma Team 2024): norms before and after each piece, capped scores and logits, windows on even layers."""

from functools import partial
from typing import Any

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, minus_one
from octavo.architectures.llama import IGNORED, MLP_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope import make_rope
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import Attention, Block, CausalLM, Embedding, GatedMLP, Linear, Names, Residual, RMSNorm

NAMES = Names(
    {
        "model.embed_tokens": "embed",
        "model.layers.{i}.input_layernorm": "layers.{i}.attention.norm",
        "model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attention.inner.qkv.{q|k|v}",
        "model.layers.{i}.self_attn.o_proj": "layers.{i}.attention.inner.o",
        "model.layers.{i}.post_attention_layernorm": "layers.{i}.attention.post_norm",
        "model.layers.{i}.pre_feedforward_layernorm": "layers.{i}.mlp.norm",
        **MLP_NAMES,
        "model.layers.{i}.post_feedforward_layernorm": "layers.{i}.mlp.post_norm",
        "model.norm": "norm",
        "lm_head": "head",
    },
    IGNORED,
    prefix="model.",
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    hidden_size, num_heads, layers = shared["hidden_size"], shared["num_attention_heads"], shared["num_hidden_layers"]
    # The scale of the scores is not in the file: it is the head's width, but for 27B the width over the heads.
    scalar = hidden_size // num_heads if layers == 46 else shared.get("head_dim", hidden_size // num_heads)
    return {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


@architecture(
    "Gemma2ForCausalLM",
    about="Gemma 2",
    examples=("google/gemma-2-9b", "google/gemma-2-27b"),
    gguf=GGUFFormat(
        "gemma2",
        config=_from_gguf,
        undo={name: minus_one for name in NAMES.table if name.endswith("norm")},
    ),
)
@architecture("Gemma2Model", about="Gemma2-based embedders", examples=("BAAI/bge-multilingual-gemma2",), tasks=EMBEDS)
def gemma2(c: Config) -> CausalLM:
    num_heads, head_dim = c.num_attention_heads, c.head_dim
    norm = partial(RMSNorm, c.hidden_size, eps=c.rms_norm_eps, offset=1.0)
    attention = partial(
        Attention,
        c.hidden_size,
        num_heads,
        c.num_key_value_heads,
        head_dim,
        bias=c.attention_bias,
        out_bias=c.attention_bias,
        scale=c.query_pre_attn_scalar**-0.5,
        softcap=c.get("attn_logit_softcapping"),
    )
    mlp = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_activation)
    kinds = layer_types(c, [FULL if i % 2 else SLIDING for i in range(c.num_hidden_layers)])
    ropes = {kind: make_rope(c, head_dim, layer=kind, layers=kinds) for kind in kinds}
    window = {SLIDING: c.get("sliding_window")}
    return CausalLM(
        embed=Embedding(c.vocab_size, c.hidden_size, scale=c.hidden_size**0.5),
        layer=lambda i: Block(
            attention=Residual(norm(), attention(rope=ropes[kinds[i]], window=window.get(kinds[i])), norm()),
            mlp=Residual(norm(), mlp(), norm()),
        ),
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.tie_word_embeddings else Linear(c.hidden_size, c.vocab_size),
        names=NAMES,
        softcap=c.get("final_logit_softcapping"),
    )
