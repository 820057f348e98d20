"""Rows sorted by what they are multiplied with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.triton.grouping_kernels import group_kernel

GROUPED_AT_ONCE = 1024
"""Rows that a program of `group_kernel` looks at together."""


@dataclass(frozen=True)
class Groups:
    """Which rows meet which of several weights."""

    addresses: Tensor
    """[groups] int64: where each one's weight is; 0 for none, and then nothing is written."""
    columns: Tensor | None
    """[groups] int64: where each one's order of columns is, where they have one."""
    order: Tensor
    """[results] int32: their numbers, group by group."""
    starts: Tensor
    """[groups + 1] int32: where each group's begin."""
    shared: int
    """Results that are of one row of x each."""


def grouped(keys: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Numbers of rows in the order of their groups, and where each group's begin.

    Args:
        keys: [rows] int64, each row's group, -1 for none.
        groups: how many there are.

    Returns: [rows] int32, of which only as many are filled as are of a group; [groups + 1] int32.
    """
    order = torch.empty(max(1, len(keys)), dtype=torch.int32, device=keys.device)
    starts = torch.empty(groups + 1, dtype=torch.int32, device=keys.device)
    group_kernel[(groups,)](keys.contiguous(), len(keys), order, starts, GROUPS=groups, BLOCK=GROUPED_AT_ONCE)
    return order, starts


def most_blocks(results: int, groups: int, rows: int) -> int:
    """How many blocks of so many rows there can be at most, however results are shared out among groups."""
    return min(results, results // rows + groups)


def aligned(weight: Tensor) -> Tensor:
    """The weight where kernels may read it by its address, 16 bytes at a time; its values lie one after the other."""
    weight = weight.contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()
