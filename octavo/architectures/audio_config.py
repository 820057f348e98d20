"""Whisper's encoder as published configs describe it."""

from collections.abc import Mapping
from typing import Any

from octavo.architectures.model_config import Config
from octavo.parts import WhisperEncoder

WHISPER: Mapping[str, Any] = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "activation_function": "gelu",
}
"""What the published config class takes for keys that are left out."""


def whisper_encoder(c: Config, defaults: Mapping[str, Any] = WHISPER) -> WhisperEncoder:
    """The encoder that a section describes. scale_embedding is the decoder's alone."""
    c = Config(c.values, {**defaults, **c.defaults}, c.path)
    return WhisperEncoder(
        c.d_model,
        c.encoder_ffn_dim,
        c.encoder_layers,
        c.encoder_attention_heads,
        c.num_mel_bins,
        c.max_source_positions,
        c.activation_function,
    )
