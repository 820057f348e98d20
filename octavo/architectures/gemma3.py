"""Gemma 3 (Gemma Team 2025): Gemma 2's norms with norms of each head, and a base of rope for each kind of layer."""

from functools import partial
from typing import Any

from octavo.architectures.composite import text_alone
from octavo.architectures.decoder import head_norms
from octavo.architectures.gemma2 import GEMMA2_NAMES, gemma_body
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, minus_one
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_layers import rope_by_layer
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.architectures.text_config import text_config
from octavo.parts import (
    BidirectionalAttention,
    CausalLM,
    Embedding,
    GatedMLP,
    RMSNorm,
    SandwichNorm,
    TextEmbedding,
    TextEncoder,
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    hidden_size, num_heads, layers = shared["hidden_size"], shared["num_attention_heads"], shared["num_hidden_layers"]
    # As for Gemma 2, the scale of the scores is not in the file: the 27B's differs.
    scalar = hidden_size // num_heads if layers == 62 else shared.get("head_dim", hidden_size // num_heads)
    return {
        "query_pre_attn_scalar": scalar,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "rope_local_base_freq": file.value("rope.freq_base_swa", 10000.0),
    }


UNDO = {name: minus_one for name in GEMMA2_NAMES.table if name.endswith("norm")}


@architecture(
    "Gemma3ForCausalLM",
    about="Gemma 3 270M and 1B",
    examples=("google/gemma-3-1b-it", "google/gemma-3-270m-it"),
    gguf=GGUFFormat(
        "gemma3",
        config=_from_gguf,
        undo=UNDO,
        header=lambda c: {"rope.freq_base_swa": float(c.get("rope_local_base_freq", 10000.0))},
    ),
)
def gemma3(c: Config) -> CausalLM:
    every = c.get("sliding_window_pattern", 6)
    types = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(c.num_hidden_layers)])
    ropes = rope_by_layer(c, types, c.get("rope_local_base_freq", 10000.0))
    return gemma_body(c, ropes, types, qk_transform=head_norms(c, offset=1.0))


@architecture(
    "Gemma3ForConditionalGeneration",
    about="Gemma 3 4B to 27B (text)",
    examples=("google/gemma-3-4b-it", "google/gemma-3-27b-it"),
    defaults={"text_config": {"model_type": "gemma3_text"}},
    read_as="gemma3",
)
def gemma3_text_part(c: Config) -> CausalLM:
    return text_alone(c, gemma3(text_config(c)), "vision_tower.", "multi_modal_projector.")


@architecture(
    "Gemma3TextModel",
    about="EmbeddingGemma",
    examples=("google/embeddinggemma-300m",),
    tasks=EMBEDS,
    gguf=GGUFFormat(
        "gemma-embedding",
        config=lambda shared, file: {**_from_gguf(shared, file), "use_bidirectional_attention": True},
        undo=UNDO,
    ),
)
def gemma3_encoder(c: Config) -> CausalLM:
    """Without its head, and with use_bidirectional_attention an encoder of windows to both sides."""
    if not c.get("use_bidirectional_attention"):
        return gemma3(c)
    size, every = c.hidden_size, c.get("sliding_window_pattern", 6)
    types = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(c.num_hidden_layers)])
    own = rope_by_layer(c, types, c.get("rope_local_base_freq", 10000.0))
    norm = partial(RMSNorm, size, c.rms_norm_eps, 1.0)
    head_dim, norms = c.get("head_dim", size // c.num_attention_heads), head_norms(c, offset=1.0)
    ropes = {kind: make_rope(own, head_dim, layer=kind, layers=types) for kind in set(types)}

    def layer(i: int) -> SandwichNorm:
        attn = BidirectionalAttention(
            size,
            c.num_attention_heads,
            c.get("num_key_value_heads", c.num_attention_heads),
            head_dim,
            rope=ropes[types[i]],
            bias=c.attention_bias,
            scale=c.query_pre_attn_scalar**-0.5,
            window=c.sliding_window // 2 if types[i] == SLIDING else None,
            qk_norm=norms(),
        )
        return SandwichNorm(norm, attn=attn, mlp=GatedMLP(size, c.intermediate_size, c.hidden_activation))

    table = GEMMA2_NAMES.replacing({"model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attn.qk_norm.{q|k}"})
    table = table.replacing({"model.embed_tokens": "embed.tokens"})
    embed = TextEmbedding(Embedding(c.vocab_size, size, size**0.5))
    return TextEncoder(embed, layer, c.num_hidden_layers, size, table, norm=norm())
