"""How the attention kernels are launched: tiles, warps and stages, by a layer's widths and dtypes alone.

Nothing here may depend on a batch: a row's sums must not. None of the numbers has been timed on a GPU; they follow from
what a multiprocessor holds (64K registers, 227 KiB of shared memory on an H100), and that memory's bandwidth, not the
products, bounds decode. 64 rows are what a warp group multiplies at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.ops.plans import AttentionPlan, RecurrentPlan
from octavo.ops.triton.launching import on_device, power_of_two

MAX_DIM = 1024
"""Widths of keys and values that a tile has room for."""
SPLIT = 512
"""Keys of a softmax, from a multiple of it on, that programs may share out."""
ENOUGH_PROGRAMS = 264
"""Where there are as many programs (two for each multiprocessor of an H100), splits of keys are not shared out."""
HAS_LITTLE_SHARED = torch.version.hip is not None
"""AMD's multiprocessors share 64 KiB."""
MOST_PART_BYTES = 256 << 20
"""Memory for what splits give; where they would take more, a program goes over all."""


@dataclass(frozen=True)
class Tiles:
    """Of one layer's launches."""

    queries: int
    """Rows of a tile: tokens times heads."""
    keys: int
    warps: int
    stages: int


def tiles_for(dim: int, value_dim: int, compute: torch.dtype) -> Tiles:
    """The tiles of a layer whose products are of numbers in `compute`."""
    widest = max(dim, value_dim)
    if compute.itemsize == 2:
        if widest <= 128:
            return Tiles(64, 64, 4, 3)
        if HAS_LITTLE_SHARED:
            return Tiles(32, 32, 8, 1) if widest <= 256 else Tiles(16, 16, 8, 1)
        return Tiles(64, 64, 8, 2) if widest <= 256 else Tiles(16, 32, 8, 2)
    if widest <= 128:
        return Tiles(32, 32, 8, 2)
    return Tiles(16, 32, 8, 2) if widest <= 256 and not HAS_LITTLE_SHARED else Tiles(16, 16, 8, 1)


def split_width(dim: int) -> tuple[int, int]:
    """Powers of two, 16 at least, that a width is computed as: the greatest within it, and room for the rest."""
    width = max(16, 1 << (dim.bit_length() - 1))
    return width, 0 if dim <= width else max(16, power_of_two(dim - width))


@dataclass(frozen=True)
class PlanTables:
    """What kernels read of a plan."""

    runs: Tensor
    """[runs, 6] int64, where tensors are."""
    tiles: Tensor
    """[tiles, 2] int32: of each, the run and the first of its tokens."""
    end: int
    """The end of the last key that any query sees; of a plan that is filled in later, of any that it could."""


def are_known(plan: AttentionPlan | RecurrentPlan) -> bool:
    """Whether a plan's runs can be looked at: those of a step that is recorded are filled in later."""
    return isinstance(plan.runs, list | tuple)


def plan_tables(plan: AttentionPlan, tokens: int) -> PlanTables:
    """For tiles of at most so many tokens.

    A plan with as many runs as tokens has runs of one token each, so that its runs need not be looked at. In a recorded
    step a run may have no token, and is passed over.
    """
    key = ("tiles", tokens)
    if key not in plan.memo:
        device, runs = plan.block_table.device, plan.run_table
        if len(runs) == plan.num_tokens:
            numbers = torch.arange(len(runs), dtype=torch.int32, device=device)
            tiles = torch.stack([numbers, torch.zeros_like(numbers)], 1)
        else:
            tiles = cut([r.num_tokens for r in plan.runs], tokens).to(device)
        end = plan.block_table.shape[1] * plan.block_size
        if are_known(plan):
            end = max((r.start + r.num_tokens for r in plan.runs), default=0)
        plan.memo[key] = PlanTables(_runs(plan), tiles, end)
    tables: PlanTables = plan.memo[key]
    return tables


def _runs(plan: AttentionPlan) -> Tensor:
    """The table of runs where the plan's other tensors are."""
    if "runs" not in plan.memo:
        plan.memo["runs"] = on_device(plan.run_table, plan.block_table.device)
    runs: Tensor = plan.memo["runs"]
    return runs


def cut(counts: Sequence[int], tokens: int) -> Tensor:
    """[tiles, 2] int32: runs of so many tokens cut into tiles, of each the run and its first token."""
    of_runs = -(-np.array(counts, dtype=np.int64) // tokens)
    runs = np.repeat(np.arange(len(counts)), of_runs)
    first = np.arange(len(runs)) - np.repeat(np.cumsum(of_runs) - of_runs, of_runs)
    return torch.from_numpy(np.stack([runs, first * tokens], 1).astype(np.int32))
