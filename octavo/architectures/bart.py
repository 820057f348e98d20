"""BART (Lewis et al. 2019), an encoder, and a decoder with cross-attention, and mBART: learned positions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.bart_names import NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    CrossAttention,
    Embedding,
    EncoderAttention,
    EncoderBatch,
    LayerNorm,
    Linear,
    Names,
    NormedEmbedding,
    PositionedEmbedding,
    PostNorm,
    PreNorm,
    Wiring,
)
from octavo.parts.norms import norm_rows


class Encoder(nn.Module):
    """Embeddings, layers over a whole input, and what norm is last."""

    def __init__(self, embed: nn.Module, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, batch: EncoderBatch) -> Tensor:
        x: Tensor = self.embed(batch)
        for layer in self.layers:
            x = layer(x, batch)
        return norm_rows(self.norm, x, batch)


class Bart(CausalLM):
    """The decoder, with a bias on the logits."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts, optional=("logits_bias",))
        self.logits_bias: nn.Parameter | None = nn.Parameter(torch.empty(1, self.vocab_size), requires_grad=False)

    def process_logits(self, logits: Tensor) -> Tensor:
        logits = super().process_logits(logits)
        return logits if self.logits_bias is None else logits + self.logits_bias.float()


def translator(
    c: Config,
    embed: Callable[[str], nn.Module],
    names: Names,
    wiring: type[Wiring] = PreNorm,
    vocab_size: int | None = None,
) -> CausalLM:
    """An encoder and a decoder of the sizes that BART's config keys say.

    Args:
        c: the config.
        embed: makes what begins the "encoder" and the "decoder".
        names: of the tensors.
        wiring: of the layers. Where norms come before the pieces, there is one more after all layers.
        vocab_size: of the answers; None for the config's.
    """
    hidden_size, activation = c.d_model, c.activation_function
    # By their shared names, as its config class writes and reads them, the encoder's sizes are meant.
    num_heads = c.first("num_attention_heads", "encoder_attention_heads")
    layers = c.first("num_hidden_layers", "encoder_layers")
    norm = partial(LayerNorm, hidden_size, 1e-5)
    last = norm if wiring is PreNorm else nn.Identity
    mlp = partial(MLP, hidden_size, activation=activation, bias=True)

    def encoder_layer() -> Wiring:
        return wiring(norm, attn=EncoderAttention(hidden_size, num_heads, bias=True), mlp=mlp(c.encoder_ffn_dim))

    def decoder_layer(i: int) -> Wiring:
        heads = c.decoder_attention_heads
        return wiring(
            norm,
            attn=Attention(hidden_size, heads, heads, hidden_size // heads, bias=True, out_bias=True),
            cross_attn=CrossAttention(hidden_size, heads, bias=True),
            mlp=mlp(c.decoder_ffn_dim),
        )

    return Bart(
        embed=embed("decoder"),
        layer=decoder_layer,
        layers=c.decoder_layers,
        norm=last(),
        head=Linear(hidden_size, c.vocab_size if vocab_size is None else vocab_size),
        names=names,
        tied=True,
        encoder=Encoder(embed("encoder"), [encoder_layer() for _ in range(layers)], last()),
    )


def token_table(c: Config, vocab_size: int | None = None) -> Embedding:
    """The token embeddings, times the root of their size where the config says so."""
    scale = c.d_model**0.5 if c.scale_embedding else 1.0
    return Embedding(c.vocab_size if vocab_size is None else vocab_size, c.d_model, scale)


def learned(c: Config, wiring: type[Wiring]) -> CausalLM:
    """Learned positions, and a norm behind the embeddings."""
    tokens = token_table(c)

    def embed(side: str) -> NormedEmbedding:
        positions = Embedding(c.max_position_embeddings, c.d_model)
        return NormedEmbedding(PositionedEmbedding(tokens, positions), LayerNorm(c.d_model, 1e-5))

    return translator(c, embed, NAMES, wiring)


@architecture(
    "BartForConditionalGeneration",
    "BartModel",
    about="BART",
    examples=("facebook/bart-base", "facebook/bart-large-cnn"),
)
def bart(c: Config) -> CausalLM:
    return learned(c, PostNorm)


@architecture("MBartForConditionalGeneration", about="mBART", examples=("facebook/mbart-large-50-many-to-many-mmt",))
def mbart(c: Config) -> CausalLM:
    """Liu et al. 2020: norms before the pieces."""
    return learned(c, PreNorm)
