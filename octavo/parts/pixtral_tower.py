"""Pixtral's vision tower (Agrawal et al. 2024): pictures of any shape, each of which sees itself only."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from octavo.parts.batch import SpanBatch
from octavo.parts.encoder import EncoderAttention
from octavo.parts.media_tower import MediaData, MediaTower, together
from octavo.parts.mlp import MLP, GatedMLP
from octavo.parts.norms import RMSNorm
from octavo.parts.resampler import runs_of
from octavo.parts.rotary_embedding import frequencies, grid_angles
from octavo.parts.vision_transformer import EncoderLayers, PatchEmbedding
from octavo.parts.wiring import PreNorm


class PixtralTower(nn.Module):
    """Patches, rope by row and column, gated feed-forwards, RMS norms before the pieces, no biases.

    Args:
        hidden_size, intermediate_size, num_heads: sizes.
        states: whose hidden states to give, by the number of layers behind them; several lie side by side.
        head_dim: values of a head.
        patch_size: pixels of a patch's side.
        base: of rope. Every second frequency is turned by the row, the others by the column.
        activation: of the feed-forwards.
        interleaved: pairs of rope are neighbours, as Mistral's own format has them.
        channels: of pictures.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        states: Sequence[int],
        num_heads: int,
        head_dim: int,
        patch_size: int,
        *,
        base: float,
        activation: str,
        interleaved: bool,
        channels: int = 3,
    ) -> None:
        super().__init__()
        norm = partial(RMSNorm, hidden_size, 1e-5)
        self.states = list(states)
        self.output_size = hidden_size * len(self.states)
        every = frequencies(head_dim, base)
        self.tables = [every[0::2], every[1::2]]
        self.patches = PatchEmbedding(patch_size, hidden_size, bias=False, channels=channels)
        self.first_norm = norm()

        def layer(i: int) -> nn.Module:
            attn = EncoderAttention(hidden_size, num_heads, head_dim=head_dim, interleaved=interleaved)
            return PreNorm(norm, attn=attn, mlp=GatedMLP(hidden_size, intermediate_size, activation))

        self.encoder = EncoderLayers(layer, max(self.states))

    def forward(self, pictures: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """For each picture `[channels, height, width]` the rows of its patches, `[patches, hidden_size * states]`."""
        patches = self.patches.of(pictures, dtype)
        places = [torch.cat(axis) for axis in zip(*(self._places(picture) for picture in pictures), strict=True)]
        batch = SpanBatch(runs_of(patches), angles=grid_angles(self.tables, places))
        states = self.encoder.states(self.first_norm(torch.cat(patches)), batch, self.states)
        return list(torch.split(torch.cat(states, dim=-1), [len(each) for each in patches]))

    def _places(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each patch, `[patches]` int64 each."""
        rows, columns = (length // self.patches.patch_size for length in picture.shape[1:])
        return torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)


class ProjectedPixtral(MediaTower):
    """Pixtral's rows, brought to the size of the text's by two layers."""

    def __init__(self, tower: PixtralTower, project: MLP) -> None:
        super().__init__()
        self.tower, self.project = tower, project

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        return together(self.tower([item["pixel_values"] for item in items], self.dtype), self.project)
