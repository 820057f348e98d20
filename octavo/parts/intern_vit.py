"""InternViT (Chen et al. 2024): a vision transformer whose pieces are scaled, and rows of neighbours made one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from octavo.parts.media_tower import together
from octavo.parts.vision_transformer import EncoderLayers, PatchEmbedding, resized_positions
from octavo.parts.wiring import PreNorm


class LayerScale(PreNorm):
    """`x + piece_scale * piece(norm(x))`, with a learned factor for each of the piece's values (Touvron et al. 2021).

    Args:
        norm: makes the norm of a piece.
        size: values of a row.
        pieces: by name. The factors of the piece `attn` are `attn_scale`.
    """

    def __init__(self, norm: Callable[[], nn.Module], size: int, **pieces: nn.Module) -> None:
        super().__init__(norm, scale=1.0, **pieces)
        for name in self.pieces:
            self.register_parameter(f"{name}_scale", nn.Parameter(torch.empty(size), requires_grad=False))

    def branch(self, name: str, x: Tensor, batch: object) -> Tensor:
        return super().branch(name, x, batch) * getattr(self, f"{name}_scale")  # type: ignore[no-any-return]


class InternViT(nn.Module):
    """A class token and patches with learned positions, through layers; the class token is not given.

    Args:
        patches: makes rows of a picture's squares.
        grid: patches along a side of the pictures that the positions are of.
        layer: makes the layer of a given index.
        layers: how many are run: up to the hidden states that are wanted. None at all make a tower of patches alone.
    """

    def __init__(self, patches: PatchEmbedding, grid: int, layer: Callable[[int], nn.Module], layers: int) -> None:
        super().__init__()
        size = patches.outputs
        self.patches = patches
        self.class_token = nn.Parameter(torch.empty(1, size), requires_grad=False)
        self.positions = nn.Parameter(torch.empty(grid * grid + 1, size), requires_grad=False)
        self.encoder = EncoderLayers(layer, layers)

    def forward(self, pictures: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """For each picture `[channels, height, width]` its patches' rows, `[patches, hidden_size]`."""
        rows = []
        for picture, patches in zip(pictures, self.patches.of(pictures, dtype), strict=True):
            height, width = (length // self.patches.patch_size for length in picture.shape[1:])
            positions = resized_positions(self.positions[1:], (height, width))
            rows.append(torch.cat([self.class_token + self.positions[:1], patches + positions]))
        return [x[1:] for x in together(rows, self.encoder)]


def pixel_shuffle(x: Tensor, grid: tuple[int, int], ratio: float, transposed: bool = True) -> Tensor:
    """Neighbours of a grid made one row: `[rows * columns * ratio**2, size / ratio**2]` of `[rows * columns, size]`.

    `transposed` as ps_version v2 has it; v1 left the grid's axes exchanged.
    """
    rows, columns, size = *grid, x.shape[1]
    x = x.view(rows, int(columns * ratio), int(size / ratio)).transpose(0, 1)
    x = x.reshape(int(columns * ratio), int(rows * ratio), int(size / ratio**2))
    return (x.transpose(0, 1) if transposed else x).reshape(-1, x.shape[-1])
