"""BART (Lewis et al. 2019): an encoder, and a decoder with cross-attention; norms after the pieces."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.architectures.opt import drop_padding
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    CrossAttention,
    Embedding,
    EncoderAttention,
    EncoderBatch,
    Into,
    LayerNorm,
    Linear,
    Names,
    NormedEmbedding,
    PositionedEmbedding,
    PostNorm,
    parameter,
)


def side(name: str, layers: str, embed: str) -> dict[str, str | Into]:
    """The names that the encoder and the decoder have alike."""
    return {
        f"model.{name}.embed_positions": Into(f"{embed}.tokens.positions", drop_padding),
        f"model.{name}.layernorm_embedding": f"{embed}.norm",
        f"model.{name}.layers.{{i}}.self_attn.{{q|k|v}}_proj": f"{layers}.attn.qkv.{{q|k|v}}",
        f"model.{name}.layers.{{i}}.self_attn.out_proj": f"{layers}.attn.o",
        f"model.{name}.layers.{{i}}.self_attn_layer_norm": f"{layers}.attn_norm",
        f"model.{name}.layers.{{i}}.fc1": f"{layers}.mlp.up",
        f"model.{name}.layers.{{i}}.fc2": f"{layers}.mlp.down",
        f"model.{name}.layers.{{i}}.final_layer_norm": f"{layers}.mlp_norm",
    }


NAMES = Names(
    {
        "model.{shared|encoder.embed_tokens|decoder.embed_tokens}": "embed.tokens.tokens",
        **side("encoder", "encoder.layers.{i}", "encoder.embed"),
        **side("decoder", "layers.{i}", "embed"),
        "model.decoder.layers.{i}.encoder_attn.q_proj": "layers.{i}.cross_attn.q",
        "model.decoder.layers.{i}.encoder_attn.{k|v}_proj": "layers.{i}.cross_attn.kv.{k|v}",
        "model.decoder.layers.{i}.encoder_attn.out_proj": "layers.{i}.cross_attn.o",
        "model.decoder.layers.{i}.encoder_attn_layer_norm": "layers.{i}.cross_attn_norm",
        "final_logits_bias": parameter("logits_bias"),
        "lm_head": "head",
    },
    prefix="model.",
)


class Encoder(nn.Module):
    """Embeddings and layers over a whole input."""

    def __init__(self, embed: nn.Module, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(layers)

    def forward(self, batch: EncoderBatch) -> Tensor:
        x: Tensor = self.embed(batch)
        for layer in self.layers:
            x = layer(x, batch)
        return x


class Bart(CausalLM):
    """The decoder, with a bias on the logits."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts, optional=("logits_bias",))
        self.logits_bias: nn.Parameter | None = nn.Parameter(torch.empty(1, self.vocab_size), requires_grad=False)

    def process_logits(self, logits: Tensor) -> Tensor:
        logits = super().process_logits(logits)
        return logits if self.logits_bias is None else logits + self.logits_bias.float()


@architecture(
    "BartForConditionalGeneration",
    "BartModel",
    about="BART",
    examples=("facebook/bart-base", "facebook/bart-large-cnn"),
)
def bart(c: Config) -> CausalLM:
    hidden_size, activation = c.d_model, c.activation_function
    # By their shared names, as its config class writes and reads them, the encoder's sizes are meant.
    num_heads = c.first("num_attention_heads", "encoder_attention_heads")
    layers = c.first("num_hidden_layers", "encoder_layers")
    norm = partial(LayerNorm, hidden_size, 1e-5)
    scale = hidden_size**0.5 if c.scale_embedding else 1.0
    tokens = Embedding(c.vocab_size, hidden_size, scale)

    def embed() -> NormedEmbedding:
        return NormedEmbedding(PositionedEmbedding(tokens, Embedding(c.max_position_embeddings, hidden_size)), norm())

    mlp = partial(MLP, hidden_size, activation=activation, bias=True)

    def encoder_layer() -> PostNorm:
        return PostNorm(norm, attn=EncoderAttention(hidden_size, num_heads, bias=True), mlp=mlp(c.encoder_ffn_dim))

    def decoder_layer(i: int) -> PostNorm:
        heads = c.decoder_attention_heads
        return PostNorm(
            norm,
            attn=Attention(hidden_size, heads, heads, hidden_size // heads, bias=True, out_bias=True),
            cross_attn=CrossAttention(hidden_size, heads, bias=True),
            mlp=mlp(c.decoder_ffn_dim),
        )

    return Bart(
        embed=embed(),
        layer=decoder_layer,
        layers=c.decoder_layers,
        norm=nn.Identity(),
        head=Linear(hidden_size, c.vocab_size),
        names=NAMES,
        tied=True,
        encoder=Encoder(embed(), [encoder_layer() for _ in range(layers)]),
    )
