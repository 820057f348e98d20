"""Gemma 3n (Google 2025), text: several streams, per-layer vectors, sparse gates, shared keys and values."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor

from octavo.architectures.gemma3n_gguf import GEMMA3N_FORMAT
from octavo.architectures.gemma3n_layer import Gemma3nLayer, Laurel
from octavo.architectures.gemma3n_names import GEMMA3N_NAMES, LAYER
from octavo.architectures.gemma4_names import in_composite
from octavo.architectures.gemma4_shared_keys import shared_keys, unread_keys
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_layers import rope_by_layer
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.errors import CheckpointError
from octavo.parts import (
    AliasedEmbedding,
    AltUp,
    AltUpEmbedding,
    Batch,
    CausalLM,
    Embedding,
    GatedMLP,
    Linear,
    Names,
    PerLayerInput,
    PlainRMSNorm,
    QKNorm,
    RMSNorm,
    SharedAttention,
    SparseGatedMLP,
    StreamMerge,
)


class Gemma3n(CausalLM):
    """Between its layers are as many streams, side by side, as `norm` makes one of."""

    def __init__(self, norm: StreamMerge, **parts: Any) -> None:
        super().__init__(norm=norm, **parts)
        self.stream_size = self.hidden_size * (1 + len(norm.streams))

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        return cast(StreamMerge, self.norm).merged(x, batch)


def _of_layers(c: Config, key: str, values: Sequence[Any]) -> Sequence[Any]:
    """`values`, which the config has under `key`. Raises CheckpointError where they are not one for each layer."""
    if len(values) != (count := c.num_hidden_layers):
        raise CheckpointError(f"config.json: {c.path}{key} has {len(values)} values for {count} layers.")
    return values


def _sizes(c: Config) -> Sequence[int]:
    """intermediate_size of each layer: a list, or one number for all."""
    listed = c.values.get("intermediate_size")
    if not isinstance(listed, list):
        return [c.intermediate_size] * c.num_hidden_layers
    return _of_layers(c, "intermediate_size", [c.replace(intermediate_size=s).intermediate_size for s in listed])


def _attention(c: Config, types: Sequence[str], shares: Sequence[dict[str, Any]]) -> Callable[[int], SharedAttention]:
    head_dim, eps, own = c.head_dim, c.rms_norm_eps, rope_by_layer(c, types, c.get("rope_local_base_freq", 10000.0))
    norm, plain = partial(RMSNorm, head_dim, eps), partial(PlainRMSNorm, head_dim, eps)
    ropes = {kind: make_rope(own, head_dim, layer=kind, layers=types) for kind in set(types)}

    def make(i: int) -> SharedAttention:
        reads = shares[i].get("reads", False)
        return SharedAttention(
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            head_dim,
            **shares[i],
            rope=ropes[types[i]],
            qk_transform=QKNorm(norm(), None if reads else norm(), v=None if reads else plain()),
            bias=c.attention_bias,
            out_bias=c.attention_bias,
            window=c.sliding_window if types[i] == SLIDING else None,
            scale=1.0,
        )

    return make


def _layer(c: Config, attn: Callable[[int], SharedAttention]) -> Callable[[int], Gemma3nLayer]:
    size, count, eps, activation = c.hidden_size, c.num_hidden_layers, c.rms_norm_eps, c.hidden_activation
    norm, sizes, few = partial(RMSNorm, size, eps), _sizes(c), 10 if count > 10 else 0
    key, usual = "activation_sparsity_pattern", [0.95] * few + [0.0] * (count - few)
    sparsity = _of_layers(c, key, c.get(key, usual))
    streams, active = c.altup_num_inputs, c.altup_active_idx
    if active >= streams:
        raise CheckpointError(f"config.json: {c.path}altup_active_idx {active} is none of {streams} streams.")

    def make(i: int) -> Gemma3nLayer:
        inner = (size, sizes[i], activation)
        return Gemma3nLayer(
            norm,
            attn=attn(i),
            mlp=SparseGatedMLP(*inner, sparsity[i]) if sparsity[i] else GatedMLP(*inner),
            altup=AltUp(size, streams, active, eps, c.altup_correct_scale),
            laurel=Laurel(norm(), c.laurel_rank),
            per_layer=PerLayerInput(size, c.hidden_size_per_layer_input, i, activation),
        )

    return make


@architecture(
    "Gemma3nForCausalLM", about="Gemma 3n (text alone)", examples=("google/gemma-3n-E2B",), gguf=GEMMA3N_FORMAT
)
def gemma3n(c: Config) -> CausalLM:
    size, count, own = c.hidden_size, c.num_hidden_layers, c.hidden_size_per_layer_input
    types = layer_types(c, [SLIDING if (i + 1) % 5 else FULL for i in range(count)])
    shares = shared_keys(c, types)
    table = AliasedEmbedding(c.vocab_size_per_layer_input, count * own, own**0.5, vocab_size=c.vocab_size, unknown=0)
    unread = () if c.altup_correct_scale else (LAYER + "altup.correct_output_scale",)
    names = Names(GEMMA3N_NAMES.table, (*GEMMA3N_NAMES.ignored, *unread_keys(shares), *unread), GEMMA3N_NAMES.prefix)
    tokens, norm = Embedding(c.vocab_size, size, size**0.5), RMSNorm(own, c.rms_norm_eps)
    return Gemma3n(
        embed=AltUpEmbedding(tokens, table, norm, c.altup_num_inputs),
        layer=_layer(c, _attention(c, types, shares)),
        layers=count,
        norm=StreamMerge(RMSNorm(size, c.rms_norm_eps), c.altup_num_inputs),
        head=Linear(size, c.vocab_size),
        names=names,
        softcap=c.get("final_logit_softcapping"),
        tied=c.get("tie_word_embeddings", True),
        tied_if_absent=True,
    )


@architecture(
    "Gemma3nForConditionalGeneration",
    about="Gemma 3n (text of it)",
    examples=("google/gemma-3n-E2B-it", "google/gemma-3n-E4B-it"),
)
def gemma3n_of_media(c: Config) -> CausalLM:
    tied = c.first("tie_word_embeddings", default=True)
    model = gemma3n(c.section("text_config").replace(tie_word_embeddings=tied))
    model.names = in_composite(model.names)
    return model
