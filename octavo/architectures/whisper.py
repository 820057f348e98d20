"""Whisper (Radford et al. 2023): an encoder of log-mels, and a decoder with cross-attention; keys have no bias."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.audio_config import WHISPER, whisper_encoder
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.media.processors.whisper import WhisperProcessor
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    CrossAttention,
    Embedding,
    LayerNorm,
    Linear,
    MediaData,
    MediaTower,
    Names,
    PositionedEmbedding,
    PreNorm,
    WhisperEncoder,
    together,
    whisper_names,
)

LAYER, HERE = "model.decoder.layers.{i}", "layers.{i}"
NAMES = Names(
    {
        "model.decoder.embed_tokens": "embed.tokens",
        "model.decoder.embed_positions": "embed.positions",
        f"{LAYER}.self_attn.{{q|k|v}}_proj": f"{HERE}.attn.qkv.{{q|k|v}}",
        f"{LAYER}.self_attn.out_proj": f"{HERE}.attn.o",
        f"{LAYER}.self_attn_layer_norm": f"{HERE}.attn_norm",
        f"{LAYER}.encoder_attn.q_proj": f"{HERE}.cross_attn.q",
        f"{LAYER}.encoder_attn.{{k|v}}_proj": f"{HERE}.cross_attn.kv.{{k|v}}",
        f"{LAYER}.encoder_attn.out_proj": f"{HERE}.cross_attn.o",
        f"{LAYER}.encoder_attn_layer_norm": f"{HERE}.cross_attn_norm",
        f"{LAYER}.{{fc1|fc2}}": f"{HERE}.mlp.{{up|down}}",
        f"{LAYER}.final_layer_norm": f"{HERE}.mlp_norm",
        "model.decoder.layer_norm": "norm",
        "proj_out": "head",
    },
    prefix="model.",
)
SIZES: dict[str, Any] = {
    **WHISPER,
    "vocab_size": 51865,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "max_target_positions": 448,
    "scale_embedding": False,
}
"""What the published config class takes for keys that are left out."""


class WhisperTower(MediaTower):
    """The encoder, and the norm of its rows."""

    def __init__(self, tower: WhisperEncoder) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        rows = self.tower([item["input_features"].to(self.dtype) for item in items])
        return together(rows, lambda x, batch: self.tower.norm(x))


@architecture(
    "WhisperForConditionalGeneration",
    about="Whisper",
    examples=("openai/whisper-large-v3-turbo", "openai/whisper-small"),
    media=WhisperProcessor,
    defaults=SIZES,
)
def whisper(c: Config) -> CausalLM:
    size, heads = c.d_model, c.decoder_attention_heads
    norm = partial(LayerNorm, size, 1e-5)
    tokens = Embedding(c.vocab_size, size, size**0.5 if c.scale_embedding else 1.0)

    def layer(i: int) -> PreNorm:
        return PreNorm(
            norm,
            attn=Attention(size, heads, heads, size // heads, bias=("q", "v"), out_bias=True),
            cross_attn=CrossAttention(size, heads, bias=("q", "v")),
            mlp=MLP(size, c.decoder_ffn_dim, c.activation_function, bias=True),
        )

    model = CausalLM(
        PositionedEmbedding(tokens, Embedding(c.max_target_positions, size)),
        layer,
        c.decoder_layers,
        norm(),
        Linear(size, c.vocab_size),
        NAMES,
        tied=True,
    )
    return model.with_media(WhisperTower(whisper_encoder(c, SIZES)), whisper_names("model.encoder.", "media.tower"))
