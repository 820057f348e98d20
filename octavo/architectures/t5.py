"""T5 (Raffel et al. 2020): biases by distance in place of positions, scores that are not scaled, RMS norms."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.bart import Encoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, has
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.t5_names import ENCODER_NAMES, NAMES, of_feed_forward
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
    Linear,
    PreNorm,
    RelativeBias,
    RMSNorm,
    TextEncoder,
)


class T5(CausalLM):
    """A model whose layers share a bias; every stage has it."""

    def __init__(self, relative_bias: RelativeBias, **parts: Any) -> None:
        super().__init__(**parts)
        self.relative_bias = relative_bias

    def keep_stage(self, index: int, count: int, embeds_last: bool = False) -> None:
        bias = self.relative_bias
        super().keep_stage(index, count, embeds_last)
        self.relative_bias = bias


class T5Reader(T5, TextEncoder):
    """The encoder alone, which reads a whole prompt in one step."""


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


def reading_layer(c: Config, part: type[nn.Module], bias: RelativeBias) -> nn.Module:
    """A layer whose attention, a `part`, sees all of the text."""
    dim = c.first("d_kv", "head_dim")
    attn = part(c.d_model, num_heads(c), head_dim=dim, scale=1.0, position_bias=bias.of_heads)
    return PreNorm(partial(RMSNorm, c.d_model, c.layer_norm_epsilon), attn=attn, mlp=feed_forward(c)())


def encoder(c: Config, tokens: Embedding) -> T5Stack:
    bias = relative_bias(c, True)
    layers = [reading_layer(c, EncoderAttention, bias) for _ in range(c.num_layers)]
    return T5Stack(bias, tokens, layers, RMSNorm(c.d_model, c.layer_norm_epsilon))


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "d_kv": shared.get("head_dim"),
        "d_ff": shared["intermediate_size"],
        "num_heads": shared["num_attention_heads"],
        "num_decoder_layers": file.value("decoder_block_count", shared["num_hidden_layers"]),
        "feed_forward_proj": "gated-gelu" if has(file, "ffn_gate.weight") else "relu",
        "relative_attention_num_buckets": file.value("attention.relative_buckets_count"),
        "layer_norm_epsilon": shared["rms_norm_eps"],
        "decoder_start_token_id": file.value("decoder_start_token_id", 0),
    }


@architecture(
    "T5ForConditionalGeneration",
    "T5WithLMHeadModel",
    about="T5, Flan-T5",
    examples=("google/flan-t5-base", "google-t5/t5-small"),
    gguf=GGUFFormat("t5", config=_from_gguf),
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
        names=of_feed_forward(NAMES, c.feed_forward_proj),
        # A head that is not the table is stored. T5 1.1 says so by this key too, and its logits are not scaled.
        tied_if_absent=True,
        logit_scale=c.d_model**-0.5 if c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True)) else 1.0,
        encoder=encoder(c, tokens),
    )


@architecture(
    "T5EncoderModel",
    about="T5's encoder",
    examples=("sentence-transformers/sentence-t5-base",),
    tasks=EMBEDS,
    gguf=GGUFFormat("t5encoder", config=_from_gguf),
)
def t5_encoder(c: Config) -> CausalLM:
    bias = relative_bias(c, True)
    return T5Reader(
        bias,
        embed=Embedding(c.vocab_size, c.d_model),
        layer=lambda i: reading_layer(c, BidirectionalAttention, bias),
        layers=c.num_layers,
        hidden_size=c.d_model,
        names=of_feed_forward(ENCODER_NAMES, c.feed_forward_proj),
        norm=RMSNorm(c.d_model, c.layer_norm_epsilon),
    )
