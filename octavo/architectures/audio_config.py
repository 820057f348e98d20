"""Whisper's encoder as published configs describe it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorHeader
from octavo.parts import Into, WhisperEncoder, parameter

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
    c = c.with_defaults({**defaults, **c.defaults})
    return WhisperEncoder(
        c.d_model,
        c.encoder_ffn_dim,
        c.encoder_layers,
        c.encoder_attention_heads,
        c.num_mel_bins,
        c.max_source_positions,
        c.activation_function,
    )


def _flat(weight: Tensor) -> Tensor:
    """A convolution's weight as that of a Linear, and its bias, which llama.cpp has as a column, as a row."""
    return weight.flatten(1) if weight.dim() == 3 else weight.flatten()


def whisper_mmproj_names(path: str = "media.tower") -> dict[str, str | Into]:
    """Where llama.cpp's tensors of the encoder go."""
    here = f"{path}.encoder.layers.{{i}}"
    return {
        "a.conv1d.{1|2}": Into(f"{path}.{{first|second}}", _flat),
        "a.position_embd.weight": parameter(f"{path}.positions"),
        "a.blk.{i}.attn_{q|k|v}": f"{here}.attn.qkv.{{q|k|v}}",
        "a.blk.{i}.attn_out": f"{here}.attn.o",
        "a.blk.{i}.{ln1|ln2}": f"{here}.{{attn_norm|mlp_norm}}",
        "a.blk.{i}.ffn_{up|down}": f"{here}.mlp.{{up|down}}",
        "a.post_ln": f"{path}.norm",
    }


def mel_settings(file: ProjectorHeader) -> dict[str, Any]:
    """What Whisper's feature extractor is told: its window is as long as there are positions, of 20 ms each."""
    return {"chunk_length": file.audio_config()["max_source_positions"] // 50}
