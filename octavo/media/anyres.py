"""LLaVA-NeXT's tiling: a picture in the best of several resolutions, and how much of the grid it fills."""

import math
from collections.abc import Iterable

from octavo.media.pictures import Picture
from octavo.media.pixels import Size, cut, pad_centre, resize, scaled, size_of


def best_resolution(size: Size, pinpoints: Iterable[Size]) -> Size:
    """The resolution (height, width) that keeps most of a picture's pixels, and of these the least one to waste."""

    def rank(target: Size) -> tuple[int, int]:
        scale = min(target[1] / size[1], target[0] / size[0])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - target[0] * target[1]

    return max(((int(h), int(w)) for h, w in pinpoints), key=rank)


def anyres_tiles(picture: Picture, pinpoints: Iterable[Size], side: int, resample: int) -> list[Picture]:
    """A picture's tiles: scaled into its best resolution, in the middle of black, and cut row by row."""
    best = best_resolution(size_of(picture), pinpoints)
    inner = resize(picture, scaled(size_of(picture), best), resample)
    return cut(pad_centre(inner, best), (side, side))


def unpadded_grid(size: Size, grid: Size) -> Size:
    """Rows and columns of a grid of patches that a picture of `size` fills; padding goes off alike on both sides."""
    rows, columns = grid
    if size[1] / size[0] > columns / rows:
        return rows - (rows - int(round(size[0] * (columns / size[1]), 7))) // 2 * 2, columns
    return rows, columns - (columns - int(round(size[1] * (rows / size[0]), 7))) // 2 * 2


def shrunken_grid(grid: Size, side: int, most_tiles: int) -> Size:
    """LLaVA-OneVision's size for a grid that has more than a tenth above `most_tiles` times `side * side` patches."""
    rows, columns = grid
    ratio = math.sqrt(rows * columns / (most_tiles * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else grid
