"""T5 (Raffel et al. 2020): biases by distance in place of positions, scores that are not scaled, RMS norms."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.bart import Encoder
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.errors import CheckpointError
from octavo.ops import ACTIVATIONS
from octavo.parts import (
    MLP,
    Attention,
    BidirectionalAttention,
    CausalLM,
    CrossAttention,
    Embedding,
    EncoderAttention,
    GatedMLP,
    Into,
    Linear,
    Names,
    PreNorm,
    RelativeBias,
    RMSNorm,
    TextEncoder,
)


def side(name: str, top: str, mlp: int) -> dict[str, str | Into]:
    """The names of the encoder's or the decoder's stack; its feed-forward is layer number `mlp` of a block."""
    block, here = f"{name}.block.{{i}}.layer", f"{top}layers.{{i}}"
    return {
        f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{top}relative_bias",
        f"{block}.0.SelfAttention.{{q|k|v}}": f"{here}.attn.qkv.{{q|k|v}}",
        f"{block}.0.SelfAttention.o": f"{here}.attn.o",
        f"{block}.0.layer_norm": f"{here}.attn_norm",
        f"{block}.{mlp}.DenseReluDense.{{wi|wo}}": f"{here}.mlp.{{up|down}}",
        f"{block}.{mlp}.DenseReluDense.{{wi_0|wi_1}}": f"{here}.mlp.gate_up.{{gate|up}}",
        f"{block}.{mlp}.layer_norm": f"{here}.mlp_norm",
        f"{name}.final_layer_norm": f"{top}norm",
    }


NAMES = Names(
    {
        "{shared|encoder.embed_tokens|decoder.embed_tokens}": "embed",
        **side("encoder", "encoder.", 1),
        **side("decoder", "", 2),
        "decoder.block.{i}.layer.1.EncDecAttention.q": "layers.{i}.cross_attn.q",
        "decoder.block.{i}.layer.1.EncDecAttention.{k|v}": "layers.{i}.cross_attn.kv.{k|v}",
        "decoder.block.{i}.layer.1.EncDecAttention.o": "layers.{i}.cross_attn.o",
        "decoder.block.{i}.layer.1.layer_norm": "layers.{i}.cross_attn_norm",
        "lm_head": "head",
    },
    # Read by no layer: cross-attention has no positions.
    ignored=("decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias.weight",),
)


ENCODER_NAMES = Names({"{shared|encoder.embed_tokens}": "embed", **side("encoder", "", 1)})


class Shares(CausalLM):
    """A model whose layers share a bias; every stage has it."""

    relative_bias: RelativeBias

    def keep_stage(self, index: int, count: int) -> None:
        bias = self.relative_bias
        super().keep_stage(index, count)
        self.relative_bias = bias


class T5(Shares):
    """The decoder."""

    def __init__(self, relative_bias: RelativeBias, **parts: Any) -> None:
        super().__init__(**parts)
        self.relative_bias = relative_bias


class T5Reader(Shares, TextEncoder):
    """The encoder alone, which reads a whole prompt in one step."""

    def __init__(self, relative_bias: RelativeBias, **parts: Any) -> None:
        super().__init__(**parts)
        self.relative_bias = relative_bias


class T5Stack(Encoder):
    """The encoder, whose layers share a bias."""

    def __init__(self, relative_bias: RelativeBias, embed: nn.Module, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__(embed, layers, norm)
        self.relative_bias = relative_bias


def num_heads(c: Config) -> int:
    return c.first("num_heads", "num_attention_heads")  # type: ignore[no-any-return]


def relative_bias(c: Config, both_ways: bool) -> RelativeBias:
    buckets, distance = c.relative_attention_num_buckets, c.relative_attention_max_distance
    return RelativeBias(buckets, num_heads(c), distance, both_ways=both_ways)


def feed_forward(c: Config) -> Callable[[], nn.Module]:
    """What `feed_forward_proj` says: an activation, after `gated-` where there is a gate."""
    kind, _, activation = c.feed_forward_proj.rpartition("-")
    activation = "gelu_new" if (kind, activation) == ("gated", "gelu") else activation
    if kind not in ("", "gated") or activation not in ACTIVATIONS:
        raise CheckpointError(f"config.json: feed_forward_proj is {c.feed_forward_proj!r:.60}, which is not supported.")
    return partial(GatedMLP if kind else MLP, c.d_model, c.d_ff, activation)


def encoder(c: Config, tokens: Embedding) -> T5Stack:
    norm, mlp, bias = partial(RMSNorm, c.d_model, c.layer_norm_epsilon), feed_forward(c), relative_bias(c, True)

    def layer() -> nn.Module:
        dim = c.first("d_kv", "head_dim")
        attn = EncoderAttention(c.d_model, num_heads(c), head_dim=dim, scale=1.0, position_bias=bias.of_heads)
        return PreNorm(norm, attn=attn, mlp=mlp())

    return T5Stack(bias, tokens, [layer() for _ in range(c.num_layers)], norm())


@architecture(
    "T5ForConditionalGeneration",
    "T5WithLMHeadModel",
    about="T5, Flan-T5",
    examples=("google/flan-t5-base", "google-t5/t5-small"),
)
def t5(c: Config) -> CausalLM:
    tokens, bias = Embedding(c.vocab_size, c.d_model), relative_bias(c, False)
    norm, mlp = partial(RMSNorm, c.d_model, c.layer_norm_epsilon), feed_forward(c)

    def layer(i: int) -> nn.Module:
        heads, dim = num_heads(c), c.first("d_kv", "head_dim")
        return PreNorm(
            norm,
            attn=Attention(c.d_model, heads, heads, dim, scale=1.0, position_bias=bias.of_heads),
            cross_attn=CrossAttention(c.d_model, heads, head_dim=dim, scale=1.0),
            mlp=mlp(),
        )

    return T5(
        bias,
        embed=tokens,
        layer=layer,
        layers=c.get("num_decoder_layers", c.num_layers),
        norm=norm(),
        head=Linear(c.d_model, c.vocab_size),
        names=NAMES,
        # A head that is not the table is stored. T5 1.1 says so by this key too, and its logits are not scaled.
        tied_if_absent=True,
        logit_scale=c.d_model**-0.5 if c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True)) else 1.0,
        encoder=encoder(c, tokens),
    )


@architecture(
    "T5EncoderModel", about="T5's encoder", examples=("sentence-transformers/sentence-t5-base",), tasks=EMBEDS
)
def t5_encoder(c: Config) -> CausalLM:
    norm, mlp, bias = partial(RMSNorm, c.d_model, c.layer_norm_epsilon), feed_forward(c), relative_bias(c, True)

    def layer(i: int) -> nn.Module:
        dim = c.first("d_kv", "head_dim")
        attn = BidirectionalAttention(c.d_model, num_heads(c), head_dim=dim, scale=1.0, position_bias=bias.of_heads)
        return PreNorm(norm, attn=attn, mlp=mlp())

    return T5Reader(
        bias,
        embed=Embedding(c.vocab_size, c.d_model),
        layer=layer,
        layers=c.num_layers,
        hidden_size=c.d_model,
        names=ENCODER_NAMES,
        norm=norm(),
    )
