"""GPT-2 (Radford et al. 2019): learned positions, weights published as [in, out]."""

from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.config import Config
from octavo.architectures.registry import GGUFFormat, architecture
from octavo.parts import (
    MLP,
    Attention,
    Block,
    CausalLM,
    Embedding,
    LayerNorm,
    Linear,
    Names,
    PositionedEmbedding,
    Residual,
    transposed,
)

NAMES = Names(
    {
        "transformer.wte": "embed.tokens",
        "transformer.wpe": "embed.positions",
        "transformer.h.{i}.ln_1": "layers.{i}.attention.norm",
        "transformer.h.{i}.attn.c_attn": transposed("layers.{i}.attention.inner.qkv"),
        "transformer.h.{i}.attn.c_proj": transposed("layers.{i}.attention.inner.o"),
        "transformer.h.{i}.ln_2": "layers.{i}.mlp.norm",
        "transformer.h.{i}.mlp.c_fc": transposed("layers.{i}.mlp.inner.up"),
        "transformer.h.{i}.mlp.c_proj": transposed("layers.{i}.mlp.inner.down"),
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    # The causal mask, which old files carry.
    ignored=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
    prefix="transformer.",
)


def _gguf_config(shared: dict[str, Any], metadata: Any) -> dict[str, Any]:
    return {
        "n_embd": shared["hidden_size"],
        "n_layer": shared["num_hidden_layers"],
        "n_head": shared["num_attention_heads"],
        "n_inner": shared["intermediate_size"],
        "n_positions": shared["max_position_embeddings"],
        "layer_norm_epsilon": shared["layer_norm_epsilon"],
    }


def _transpose(weight: Tensor, c: Config) -> Tensor:
    """llama.cpp stores [out, in], which the name table is about to transpose."""
    return weight.t() if weight.dim() == 2 else weight


@architecture(
    "GPT2LMHeadModel",
    about="GPT-2",
    examples=("gpt2", "gpt2-xl"),
    gguf=GGUFFormat(
        "gpt2",
        config=_gguf_config,
        undo={name: _transpose for name in NAMES.table if name.endswith(("c_attn", "c_proj", "c_fc"))},
    ),
)
def gpt2(c: Config) -> CausalLM:
    width, heads = c.get("n_embd", 768), c.get("n_head", 12)
    norm = partial(LayerNorm, width, eps=c.get("layer_norm_epsilon", 1e-5))
    head_dim = width // heads
    scale = head_dim**-0.5 if c.get("scale_attn_weights", True) else 1.0
    by_layer = c.get("scale_attn_by_inverse_layer_idx", False)
    attention = partial(Attention, width, heads, heads, head_dim, bias=True, out_bias=True)
    mlp = partial(MLP, width, c.get("n_inner", 4 * width), c.get("activation_function", "gelu_new"), bias=True)
    return CausalLM(
        embed=PositionedEmbedding(Embedding(c.vocab_size, width), Embedding(c.get("n_positions", 1024), width)),
        layer=lambda i: Block(
            attention=Residual(norm(), attention(scale=scale / (i + 1) if by_layer else scale)),
            mlp=Residual(norm(), mlp()),
        ),
        layers=c.get("n_layer", 12),
        norm=norm(),
        head=None if c.get("tie_word_embeddings", True) else Linear(width, c.vocab_size),
        names=NAMES,
    )
