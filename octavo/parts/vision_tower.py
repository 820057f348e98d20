"""CLIP's and SigLIP's vision towers (Radford et al. 2021; Zhai et al. 2023): a transformer over a picture's patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from octavo.parts.batch import SpanBatch
from octavo.parts.encoder import EncoderAttention
from octavo.parts.media_tower import together
from octavo.parts.mlp import MLP
from octavo.parts.norms import LayerNorm
from octavo.parts.vision_transformer import EncoderLayers, PatchEmbedding
from octavo.parts.wiring import PreNorm


@dataclass(frozen=True)
class VisionSizes:
    """Of a tower that reads square pictures."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    """Pixels of a picture's side."""
    patch_size: int
    """Pixels of a patch's side."""
    activation: str
    """A name in octavo.ops.ACTIVATIONS."""
    eps: float
    """Of the norms."""
    channels: int = 3

    @property
    def num_patches(self) -> int:
        return int((self.image_size // self.patch_size) ** 2)

    def state_index(self, number: int) -> int:
        """How many layers are behind the hidden states that `number` chooses: 0 for the embeddings, -1 for the last.

        Raises ValueError for a number of no layer.
        """
        index = number + self.num_layers + 1 if number < 0 else number
        if not 0 <= index <= self.num_layers:
            raise ValueError(f"a tower of {self.num_layers} layers has no hidden states {number}")
        return index


class VisionTower(nn.Module):
    """Patches, learned positions, and layers with norms before their pieces. Only layers that are needed are run.

    Args:
        sizes: of the tower.
        states: whose hidden states to give, each as VisionSizes.state_index counts; several lie side by side.
        class_token: whether a learned row comes before the patches (CLIP).
        first_norm: whether the embeddings are normed (CLIP).
        last_norm: whether the hidden states that are given are.
        patch_bias: of the patches' product (SigLIP).
    """

    def __init__(
        self,
        sizes: VisionSizes,
        states: Sequence[int],
        *,
        class_token: bool,
        first_norm: bool,
        last_norm: bool,
        patch_bias: bool,
    ) -> None:
        super().__init__()
        size, norm = sizes.hidden_size, partial(LayerNorm, sizes.hidden_size, sizes.eps)
        self.states = [sizes.state_index(number) for number in states]
        self.output_size = size * len(self.states)
        self.side = sizes.image_size // sizes.patch_size
        """Patches along a picture's edge."""
        self.patches = PatchEmbedding(sizes.patch_size, size, patch_bias, sizes.channels)
        self.class_token = nn.Parameter(torch.empty(size), requires_grad=False) if class_token else None
        self.positions = nn.Parameter(torch.empty(sizes.num_patches + class_token, size), requires_grad=False)
        self.first_norm = norm() if first_norm else nn.Identity()
        self.last_norm = norm() if last_norm else nn.Identity()

        def layer(i: int) -> PreNorm:
            attn = EncoderAttention(size, sizes.num_heads, bias=True)
            return PreNorm(norm, attn=attn, mlp=MLP(size, sizes.intermediate_size, sizes.activation, True))

        self.encoder = EncoderLayers(layer, max(self.states))

    def forward(
        self, pictures: Sequence[Tensor], dtype: torch.dtype, positions: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """For each picture the hidden states of its class token, if there is one, and of its patches row by row.

        Args:
            pictures: `[channels, height, width]` each.
            dtype: of activations.
            positions: of each picture, `[patches]` int64 places in the table; None where pictures are of image_size.

        Returns: `[tokens, hidden_size * states]` each.
        """
        return self.of_patches(self.patches.of(pictures, dtype), positions)

    def of_patches(self, patches: Sequence[Tensor], positions: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The same of embedded patches, `[patches, hidden_size]` each."""
        head: list[Tensor] = [] if self.class_token is None else [self.class_token.unsqueeze(0)]
        tables: list[Tensor] = [self.positions] * len(patches)
        if positions is not None:
            tables = [torch.cat([self.positions[: len(head)], self.positions[p + len(head)]]) for p in positions]
        rows = [torch.cat([*head, own]) + table for own, table in zip(patches, tables, strict=True)]
        return together(rows, lambda x, batch: self._states(self.first_norm(x), batch))

    def _states(self, x: Tensor, batch: SpanBatch) -> Tensor:
        states = self.encoder.states(x, batch, self.states)
        return torch.cat([self.last_norm(state) for state in states], dim=-1)


def clip_tower(sizes: VisionSizes, states: Sequence[int] = (-1,), last_norm: bool = False) -> VisionTower:
    """CLIP's: a class token comes first, and a norm before the layers."""
    return VisionTower(sizes, states, class_token=True, first_norm=True, last_norm=last_norm, patch_bias=False)


def siglip_tower(sizes: VisionSizes, states: Sequence[int] = (-1,), last_norm: bool = False) -> VisionTower:
    """SigLIP's: no class token, and a bias for patches."""
    return VisionTower(sizes, states, class_token=False, first_norm=False, last_norm=last_norm, patch_bias=True)
