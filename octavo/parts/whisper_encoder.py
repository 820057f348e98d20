"""Whisper's encoder (Radford et al. 2023): two convolutions over a log-mel, and layers over their frames."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.ops import Backend
from octavo.parts.encoder import EncoderAttention
from octavo.parts.linear_layer import Linear
from octavo.parts.media_tower import together
from octavo.parts.mlp import MLP
from octavo.parts.names import Into
from octavo.parts.norms import LayerNorm
from octavo.parts.vision_transformer import EncoderLayers, flat_convolution
from octavo.parts.wiring import PreNorm

TAPS = 3
"""Frames that a convolution sees: one before and one after its own."""


class WhisperEncoder(nn.Module):
    """Convolutions, positions and layers with norms before their pieces; keys have no bias.

    Args:
        hidden_size, intermediate_size, num_layers, num_heads: sizes.
        num_bins: of the log-mel.
        max_frames: positions that there are, after the convolutions.
        activation: of feed-forwards; convolutions have gelu.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        num_heads: int,
        num_bins: int,
        max_frames: int,
        activation: str,
    ) -> None:
        super().__init__()
        norm = partial(LayerNorm, hidden_size, 1e-5)
        self.max_frames = max_frames
        self.first, self.second = (
            Linear(num_bins * TAPS, hidden_size, True),
            Linear(hidden_size * TAPS, hidden_size, True),
        )
        self.positions = nn.Parameter(torch.empty(max_frames, hidden_size), requires_grad=False)

        def layer(i: int) -> nn.Module:
            attn = EncoderAttention(hidden_size, num_heads, bias=("q", "v"), out_bias=True)
            return PreNorm(norm, attn=attn, mlp=MLP(hidden_size, intermediate_size, activation, True))

        self.encoder = EncoderLayers(layer, num_layers)
        self.norm = norm()

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, mels: Sequence[Tensor], counts: Sequence[int] | None = None) -> list[Tensor]:
        """For each log-mel `[bins, frames]` in the activations' dtype a row for every two frames, before the last norm.

        Args:
            mels: of the sounds.
            counts: how many rows of each are of the sound itself and are given; None for all. The others see it not.
        """
        items = together([self._taps(mel.t(), 1) for mel in mels], self.first)
        items = together([self._taps(self._activate(x, "gelu"), 2) for x in items], self.second)
        given = [len(x) for x in items] if counts is None else counts
        rows = [self._activate(x, "gelu")[:n] + self.positions[:n] for x, n in zip(items, given, strict=True)]
        return together(rows, self.encoder)

    @staticmethod
    def _taps(x: Tensor, stride: int) -> Tensor:
        """What a convolution sees of `x` `[frames, size]`, in the order of its weight: `[steps, size * 3]`."""
        return functional.pad(x, (0, 0, 1, 1)).unfold(0, TAPS, stride).flatten(1)


def whisper_names(published: str = "audio_tower.", path: str = "media.tower") -> dict[str, str | Into]:
    """Where the tensors of the encoder go."""
    layer, here = f"{published}layers.{{i}}", f"{path}.encoder.layers.{{i}}"
    return {
        f"{published}conv1": Into(f"{path}.first", flat_convolution),
        f"{published}conv2": Into(f"{path}.second", flat_convolution),
        f"{published}embed_positions.weight": Into(f"{path}.positions", full_name=True),
        f"{layer}.self_attn.{{q|k|v}}_proj": f"{here}.attn.qkv.{{q|k|v}}",
        f"{layer}.self_attn.out_proj": f"{here}.attn.o",
        f"{layer}.self_attn_layer_norm": f"{here}.attn_norm",
        f"{layer}.{{fc1|fc2}}": f"{here}.mlp.{{up|down}}",
        f"{layer}.final_layer_norm": f"{here}.mlp_norm",
        f"{published}layer_norm": f"{path}.norm",
    }
