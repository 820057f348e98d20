"""Tiles, warps and stages of products, and how their sums are split: all of it in one place.

None of these numbers has been timed on a GPU. They follow from what a multiprocessor holds (64K registers, 227 KiB of
shared memory on an H100) and from that few rows are bound by memory. Splits follow from a weight's shape alone, since
they are in a row's order of sums; all else changes no bit.
"""

from dataclasses import dataclass

import torch

from octavo.ops.triton.launching import INTERPRETED, PRODUCT_ROWS, cdiv, power_of_two

ENOUGH_PROGRAMS = 264
"""Two for each multiprocessor of an H100: with fewer, splits are shared out among programs."""
SPLIT_OUTPUTS = 64
"""Outputs of a program of few rows: a warp group's."""
MIN_SPLIT = 512
"""Columns of a split at least."""
AMD_INSTRUCTION = {"matrix_instr_nonkdim": 16}
"""Of two instructions, which sum in different orders, the one that tiles of any size can be made of."""
ONE_INSTRUCTION: dict[str, int] = AMD_INSTRUCTION if torch.version.hip else {}
"""Where the size of a tile would choose among instructions, what chooses one."""
FLOAT_TILE = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}
"""Columns of a weight of floats that are multiplied at a time."""


@dataclass(frozen=True)
class Tiles:
    """Of a launch."""

    outputs: int
    rows: int
    warps: int
    stages: int


def tiles_for(outputs: int, rows: int, dtype: torch.dtype) -> Tiles:
    """For `rows` rows that are multiplied in `dtype`, of each expert."""
    if INTERPRETED:
        return Tiles(min(256, max(16, power_of_two(outputs))), min(64, max(PRODUCT_ROWS, power_of_two(rows))), 4, 1)
    if rows <= 16:
        return Tiles(64, 16, 4, 4)
    if dtype == torch.float32:  # without tensor cores
        return Tiles(64, 32, 4, 2) if rows <= 64 else Tiles(64, 64, 8, 2)
    if rows <= 64:
        return Tiles(64, 64, 4, 3)
    return Tiles(128, 128, 8, 3)


def adapter_rows_for(results: int, groups: int) -> int:
    """Rows of a program of adapters, for so many results that are shared out among groups."""
    return 64 if INTERPRETED or cdiv(results, groups) > 16 else 16


def splits_for(outputs: int, tiles: int, tile: int) -> tuple[int, int]:
    """How many splits there are of a weight's `tiles` of so many columns, and how many tiles each has."""
    wanted = cdiv(ENOUGH_PROGRAMS, cdiv(outputs, SPLIT_OUTPUTS))
    each = max(cdiv(tiles, wanted), cdiv(MIN_SPLIT, tile))
    return cdiv(tiles, each), each
