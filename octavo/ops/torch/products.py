"""Linear: `x @ weight.T + bias`.

Library matrix products pick another kernel, with another order of sums, when there are very few rows. So the reference
states the fewest rows from which its result no longer depends on their number, and pads up to it.
"""

import torch
from torch import Tensor
from torch.nn import functional


class TorchLinear:
    """The reference: the weight as it is, multiplied by PyTorch."""

    min_rows = 16
    min_outputs = 4
    """A product of one output is summed as a vector's, in an order that depends on the number of rows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows, outputs = x.shape[0], self.weight.shape[0]
        if outputs == 1:
            several = TorchLinear(functional.pad(self.weight, (0, 0, 0, self.min_outputs - outputs)))
            return several(x, None if bias is None else functional.pad(bias, (0, self.min_outputs - 1)))[:, :1]
        if bias is not None:
            bias = bias.to(self.weight.dtype)
        if rows < self.min_rows:
            return functional.linear(functional.pad(x, (0, 0, 0, self.min_rows - rows)), self.weight, bias)[:rows]
        return functional.linear(x, self.weight, bias)

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0, first: int | None = None) -> Tensor:
        found = table_rows(self.weight, ids, first).to(dtype)
        return found if scale == 1.0 else found * scale


def table_rows(table: Tensor, ids: Tensor, first: int | None = None) -> Tensor:
    """See octavo.ops.backend."""
    if first is None:
        return functional.embedding(ids, table)
    ids = ids - first
    is_row = (ids >= 0) & (ids < len(table))
    return torch.where(
        is_row.unsqueeze(1), functional.embedding(ids.clamp(0, len(table) - 1), table), table.new_zeros(())
    )


TERMS = 128
"""Library batched products sum up to so many terms in plain order, whatever the number of rows."""
ROW_GRAIN = 8
"""Rows of a batched product are padded to a multiple of it: below, libraries use another order of sums."""


class TorchHeads:
    """The reference of PackedHeads, for `weight` `[heads, out, in]`."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.transpose(1, 2).contiguous()

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        rows = x.shape[0]
        by_head = functional.pad(x.float().transpose(0, 1), (0, 0, 0, -rows % ROW_GRAIN)).contiguous()
        return grouped_sum(by_head, self._weight)[:, :rows].transpose(0, 1).to(dtype)


class TorchGroups:
    """The reference of `Backend.group_linear`."""

    def __init__(self, weight: Tensor, groups: int) -> None:
        self._groups = [TorchLinear(part) for part in weight.chunk(groups)]

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        parts = [group(x[:, g].contiguous()).to(dtype) for g, group in enumerate(self._groups)]
        return torch.stack(parts, dim=1)


def grouped_sum(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` of `[batch, rows, in]` and `[batch, in, out]`, summed in groups of TERMS in ascending order.

    The number of rows is a multiple of ROW_GRAIN. A row's result depends on that row alone.
    """
    total = torch.bmm(x[..., :TERMS], y[:, :TERMS])
    for first in range(TERMS, y.shape[1], TERMS):
        total += torch.bmm(x[..., first : first + TERMS], y[:, first : first + TERMS])
    return total
