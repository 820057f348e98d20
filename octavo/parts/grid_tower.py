"""Towers of Qwen2-VL's kind (Wang et al. 2024): pictures and films of any size as patches of two frames each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.parts.linear_layer import Linear
from octavo.parts.media_tower import MediaData, MediaTower, together
from octavo.parts.rotary_embedding import frequencies, grid_angles

Grid = tuple[int, int, int]
"""Pairs of frames, rows and columns of patches of an item."""


class GridTower(MediaTower):
    """Reads patches that a processor has cut, of which `merge` by `merge` neighbours follow each other and make a row.

    A family says in `forward` what becomes of them.

    Args:
        patch_size: values of a patch.
        hidden_size: of the tower's rows.
        head_dim: of its attention, whose rope turns one half by row and the other by column.
        base: of that rope.
        merge: neighbours of a side that make one row of the text's.
        bias: of the patches' product.
    """

    def __init__(
        self, patch_size: int, hidden_size: int, head_dim: int, base: float, merge: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.patches = Linear(patch_size, hidden_size, bias)
        self.merge, self.merged = merge, hidden_size * merge**2
        self.table = frequencies(head_dim // 2, base)

    def read(self, kind: str, items: Sequence[MediaData]) -> tuple[list[Tensor], list[Grid]]:
        """The rows of each item's patches, `[patches, hidden_size]`, and its grid."""
        names = ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
        grids = [(int(t), int(rows), int(columns)) for t, rows, columns in (item[names[1]] for item in items)]
        return together([item[names[0]].to(self.dtype) for item in items], self.patches), grids

    def places(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Row and column of each patch, `[patches]` int64 each; neighbours that make one row follow each other."""
        frames, rows, columns = grid
        blocks = (frames, rows // self.merge, columns // self.merge, self.merge, self.merge)
        row = torch.arange(rows).view(1, blocks[1], 1, self.merge, 1).expand(blocks)
        column = torch.arange(columns).view(1, 1, blocks[2], 1, self.merge).expand(blocks)
        return row.flatten(), column.flatten()

    def angles(self, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
        """cos and sin of the rope of all patches, as `grid_angles` gives them."""
        rows, columns = (torch.cat(axis) for axis in zip(*map(self.places, grids), strict=True))
        return grid_angles([self.table, self.table], [rows, columns])

    def merged_counts(self, grids: Sequence[Grid]) -> list[int]:
        """How many rows of the text's each item makes."""
        return [frames * rows * columns // self.merge**2 for frames, rows, columns in grids]


def frame_runs(grids: Sequence[Grid]) -> list[tuple[int, int]]:
    """First patch and number of patches of each pair of frames of all items, one after the other."""
    runs, first = list[tuple[int, int]](), 0
    for frames, rows, columns in grids:
        runs += [(first + i * rows * columns, rows * columns) for i in range(frames)]
        first += frames * rows * columns
    return runs
