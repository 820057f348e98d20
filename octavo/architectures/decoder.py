"""What most decoders have alike: Llama's published names, and what its config keys describe."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.model_config import Config
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import layer_type
from octavo.ops import RouterSpec
from octavo.parts import (
    Attention,
    CausalLM,
    Embedding,
    GatedMLP,
    Linear,
    MoE,
    Names,
    QKNorm,
    QKTransform,
    RMSNorm,
    parameter,
)
from octavo.token_windows import Window

NAMES = Names(
    {
        "model.embed_tokens": "embed",
        "model.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
        "model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}",
        "model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attn.qk_transform.{q|k}",
        "model.layers.{i}.self_attn.o_proj": "layers.{i}.attn.o",
        "model.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
        "model.layers.{i}.mlp.{gate|up}_proj": "layers.{i}.mlp.gate_up.{gate|up}",
        "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.down",
        "model.layers.{i}.mlp.gate.e_score_correction_bias": parameter("layers.{i}.mlp.choice_bias"),
        "model.layers.{i}.mlp.gate": "layers.{i}.mlp.router",
        "model.layers.{i}.mlp.experts.{e}.{gate|up}_proj": "layers.{i}.mlp.experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.mlp.experts.{e}.down_proj": "layers.{i}.mlp.experts.{e}.down",
        "model.norm": "norm",
        "lm_head": "head",
    },
    # Buffers of older transformers, recomputed here.
    ignored=("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"),
    prefix="model.",
)
"""Entries for parts that a model lacks do no harm. What a family has otherwise, its own table says: `replacing`."""
NORMS_AFTER = NAMES.replacing(
    {
        "model.layers.{i}.post_attention_layernorm": "layers.{i}.attn_norm",
        "model.layers.{i}.post_feedforward_layernorm": "layers.{i}.mlp_norm",
    }
)
"""For a BranchNorm of layers (OLMo 2, EXAONE 4)."""

MORE_LAYERS = 8
"""Layers of a checkpoint, at most, that predict further tokens."""


def without_more_layers(c: Config, names: Names) -> Names:
    """`names` for checkpoints that have, after the last layer, some that predict further tokens."""
    count = c.num_hidden_layers
    return names.leaving_out("mtp.", *(f"model.layers.{i}." for i in range(count, count + MORE_LAYERS)))


def decoder(
    c: Config,
    norm: Callable[[], nn.Module],
    layer: Callable[[int], nn.Module],
    names: Names = NAMES,
    *,
    embed: nn.Module | None = None,
    head_bias: bool = False,
    **options: Any,
) -> CausalLM:
    """A model of the config's vocab_size, hidden_size, num_hidden_layers and tie_word_embeddings.

    Args:
        norm: makes the last norm.
        layer: makes the layer of a given index.
        names: where the published tensors go.
        embed: in place of a plain table.
        head_bias: whether the head has a bias.
        options: more of CausalLM's arguments (tied, logit_scale).
    """
    return CausalLM(
        embed=embed or Embedding(c.vocab_size, c.hidden_size),
        layer=layer,
        layers=c.num_hidden_layers,
        norm=norm(),
        head=Linear(c.hidden_size, c.vocab_size, head_bias),
        names=names,
        **{"tied": c.get("tie_word_embeddings", False), **options},
    )


def attention(
    c: Config,
    *,
    window: int | Sequence[Window | None] | None = None,
    qk_transform: Callable[[], QKTransform | None] = lambda: None,
    rotates: Sequence[bool] | None = None,
    interleaved: bool = False,
    part: Callable[..., Attention] = Attention,
    **options: Any,
) -> Callable[[int], Attention]:
    """Makes the attention of the layer of a given index, with rope as the config says.

    Args:
        window: the sliding window, of all layers or of each, which may be chunks.
        qk_transform: makes what changes queries and keys before rope.
        rotates: which layers have rope; None for all.
        interleaved: rotary pairs are neighbours.
        part: Attention, or one with more to it.
        options: more of Attention's arguments (biases, scale); `rope` in place of the config's.
    """
    num_heads, count = c.num_attention_heads, c.num_hidden_layers
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), c.get("head_dim", c.hidden_size // num_heads)
    windows = [window] * count if window is None or isinstance(window, int) else window
    kinds = [layer_type(each) for each in windows]
    rotating = set() if "rope" in options else {k for i, k in enumerate(kinds) if rotates is None or rotates[i]}
    ropes = {k: make_rope(c, head_dim, layer=k, layers=kinds, interleaved=interleaved) for k in rotating}

    def make(i: int) -> Attention:
        rope = ropes.get(kinds[i]) if rotates is None or rotates[i] else None
        own = {"rope": rope, "window": windows[i], "qk_transform": qk_transform(), **options}
        return part(c.hidden_size, num_heads, num_kv_heads, head_dim, **own)

    return make


def head_norms(c: Config, offset: float = 0.0) -> Callable[[], QKNorm]:
    """Norms of each head of queries and of keys."""
    norm = partial(RMSNorm, c.get("head_dim", c.hidden_size // c.num_attention_heads), c.rms_norm_eps, offset)
    return lambda: QKNorm(norm(), norm())


def full_width_norms(c: Config) -> Callable[[], QKNorm]:
    """Norms over all heads of queries, and over all of keys."""
    num_heads = c.num_attention_heads
    head_dim = c.get("head_dim", c.hidden_size // num_heads)
    q, k = (
        partial(RMSNorm, count * head_dim, c.rms_norm_eps)
        for count in (num_heads, c.get("num_key_value_heads", num_heads))
    )
    return lambda: QKNorm(q(), k(), full_width=True)


def gated_mlp(c: Config, bias: bool = False) -> Callable[[], GatedMLP]:
    return partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_act, bias)


def moe(c: Config, expert: Callable[[], GatedMLP], count: int, route: RouterSpec) -> Callable[[], MoE]:
    return lambda: MoE(Linear(c.hidden_size, count, exact=True), [expert() for _ in range(count)], route)


def rms_norm(c: Config) -> Callable[[], RMSNorm]:
    return partial(RMSNorm, c.hidden_size, c.rms_norm_eps)
