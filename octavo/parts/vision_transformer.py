"""Vision transformers (Dosovitskiy et al. 2021): what towers that read pictures in squares have alike."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from octavo.parts.batch import SpanBatch
from octavo.parts.linear_layer import Linear
from octavo.parts.media_tower import together


def unfold(picture: Tensor, size: int) -> Tensor:
    """Squares of `picture` `[channels, height, width]` as rows `[squares, channels * size * size]`.

    They come row by row, and the values of one in the order of a convolution's weight, so that a convolution whose
    stride is its size is a Linear. What is no whole square at the right and at the bottom is left out.
    """
    channels, height, width = picture.shape
    rows, columns = height // size, width // size
    squares = picture[:, : rows * size, : columns * size].reshape(channels, rows, size, columns, size)
    return squares.permute(1, 3, 0, 2, 4).reshape(rows * columns, channels * size * size)


def flat_convolution(weight: Tensor) -> Tensor:
    """A convolution's weight `[outputs, channels, height, width]` as that of a Linear; biases pass unchanged."""
    return weight.flatten(1) if weight.dim() > 2 else weight


class PatchEmbedding(Linear):
    """A row for each square of a picture: a convolution whose stride is its size."""

    def __init__(self, patch_size: int, hidden_size: int, bias: bool = True, channels: int = 3) -> None:
        super().__init__(channels * patch_size * patch_size, hidden_size, bias)
        self.patch_size = patch_size

    def of(self, pictures: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """For each picture `[channels, height, width]` its rows `[patches, hidden_size]` in `dtype`."""
        return together([unfold(picture, self.patch_size).to(dtype) for picture in pictures], self)


class EncoderLayers(nn.Module):
    """Layers one after the other, each called on rows and their SpanBatch."""

    def __init__(self, layer: Callable[[int], nn.Module], count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer(i) for i in range(count)])

    def forward(self, x: Tensor, batch: SpanBatch) -> Tensor:
        for layer in self.layers:
            x = layer(x, batch)
        return x

    def states(self, x: Tensor, batch: SpanBatch, counts: Sequence[int]) -> list[Tensor]:
        """For each of `counts` the hidden states `[rows, size]` after so many layers."""
        kept = {0: x}
        for count, layer in enumerate(self.layers, start=1):
            x = layer(x, batch)
            if count in counts:
                kept[count] = x
        return [kept[count] for count in counts]


def resized_positions(table: Tensor, grid: tuple[int, int], antialias: bool = False) -> Tensor:
    """A table of positions of a square grid, `[side * side, size]`, resampled (bicubic) to `grid`, rows and columns.

    Returns: [rows * columns, size] in the table's dtype; the table itself where it is of that grid already.
    """
    side = math.isqrt(len(table))
    if grid == (side, side):
        return table
    square = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    resized = interpolate(square, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def bucketed_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table of positions of a square grid, `[side * side, size]`, for `grid`, rows and columns, of patches.

    Each patch takes the place of the table's grid in which its beginning lies (Dehghani et al. 2023). Quotients are
    rounded to float32 as in the reference, where they decide on which side of a border a patch begins.

    Returns: [rows * columns, size]
    """
    side = math.isqrt(len(table))
    borders = torch.arange(1 / side, 1.0, 1 / side)
    rows, columns = (
        torch.bucketize(torch.arange(0, 1 - 1e-6, float(torch.tensor(1 / n))), borders, right=True) for n in grid
    )
    return table[(rows[:, None] * side + columns).flatten().to(table.device)]
