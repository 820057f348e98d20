"""A weight as kernels multiply with it: one kind, quantized or of floats."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from octavo.ops.stored_rows import FLOATS, StoredRows
from octavo.ops.torch.products import table_rows
from octavo.ops.triton.launching import cdiv, power_of_two
from octavo.ops.triton.product_kernels import finish_kernel, product_kernel, rows_kernel
from octavo.ops.triton.product_tiles import ENOUGH_PROGRAMS, FLOAT_TILE, splits_for, tiles_for
from octavo.ops.triton.stored_layouts import LAYOUTS, Layout, Value
from octavo.ops.triton.stored_planes import Places, pack, padded_columns, places
from octavo.ops.weight_kinds import WeightKind

POINTERS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.uint8: tl.uint8,
}
FINISHED = 1024
"""Results of a row that a program adds up."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight `[outputs, width]` on the device."""

    kind: WeightKind
    outputs: int
    width: int
    data: Tensor
    """[bytes] uint8 in planes, or [outputs, width] of a float dtype."""
    first: int = 0
    """The first of the outputs that it has of `data`'s."""
    all_outputs: int = 0
    """How many outputs `data` has."""
    order: Tensor | None = None
    """[width] int64: the columns of rows that its own are multiplied with, where these are not in order."""

    @property
    def layout(self) -> Layout:
        """How its codes lie; of floats, what is multiplied at a time."""
        return LAYOUTS[self.kind] if self.kind in LAYOUTS else _float_layout(self.data.dtype)

    @property
    def columns(self) -> int:
        """With those that fill up its last tile."""
        return padded_columns(self.kind, self.width) if self.kind in LAYOUTS else self.width

    @property
    def places(self) -> Places:
        """Of its planes."""
        if self.kind not in LAYOUTS:
            return Places(0, 0, 0, self.data.nbytes)
        return places(self.layout, self.all_outputs, self.columns)

    @property
    def table(self) -> Tensor:
        """What its codes mean; anything at all where no table says."""
        return _table(self.layout.table or (0.0,), self.data.device)

    def part(self, first: int, count: int) -> "StoredWeight":
        """`count` of the outputs, in the same memory."""
        return replace(self, first=self.first + first, outputs=count)

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float, first: int) -> Tensor:
        """Rows times `scale`, `[count, width]`. Ids count from `first`; those of no row give zeros."""
        if self.kind not in LAYOUTS:
            found = table_rows(self.data[self.first : self.first + self.outputs], ids, first).to(dtype)
            return found if scale == 1.0 else found * scale
        out = torch.empty(len(ids), self.width, dtype=dtype, device=self.data.device)
        if len(ids):
            layout, at = self.layout, self.places
            rows_kernel[(cdiv(len(ids), 16), cdiv(self.width, layout.tile))](
                ids.contiguous(), first, len(ids), self.data, at.high, at.factors, at.smalls, self.table, self.first,
                self.outputs, self.all_outputs, out, self.width, scale, L=layout, ROWS=16, num_warps=4,
            )  # fmt: skip
        if self.order is not None:
            out = torch.empty_like(out).index_copy_(1, self.order, out)
        return out


@cache
def _float_layout(dtype: torch.dtype) -> Layout:
    return Layout(1, 8, piece=FLOAT_TILE[dtype], value=Value.FLOAT)


@cache
def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def stored_weight(parts: Sequence[StoredRows], device: torch.device) -> StoredWeight:
    """Of parts of one kind and order, whose outputs lie one after the other."""
    kind, width, outputs = parts[0].kind, parts[0].width, sum(len(part.data) for part in parts)
    if kind in FLOATS.values():
        data = torch.empty(outputs, width, dtype=parts[0].data.dtype, device=device)
        first = 0
        for part in parts:
            data[first : first + len(part.data)] = part.data
            first += len(part.data)
    else:
        data = pack(parts, device)
    order = None if parts[0].order is None else parts[0].order.to(device, torch.int64)
    return StoredWeight(kind, outputs, width, data, 0, outputs, order)


@dataclass(frozen=True)
class Groups:
    """Which rows meet which of several weights (octavo.ops.triton.grouping)."""

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


def multiply(
    weight: StoredWeight, x: Tensor, out: Tensor, bias: Tensor | None = None, groups: Groups | None = None
) -> None:
    """Fill `out` `[rows, outputs]`, whose rows may lie apart, with `x @ weight.T + bias`.

    With `groups`, results are of several weights that are alike; `weight` is one of them, and there is no bias.
    """
    results = len(out)
    if not results or not weight.outputs:
        return
    if x.stride(1) != 1:
        x = x.contiguous()
    layout, at, tiles = weight.layout, weight.places, cdiv(weight.columns, weight.layout.tile)
    number = 0 if groups is None else len(groups.addresses)
    tile = tiles_for(weight.outputs, cdiv(results, max(1, number)), x.dtype)
    blocks = cdiv(results, tile.rows) if groups is None else _most_blocks(results, number, tile.rows)
    splits, each = splits_for(weight.outputs, tiles, layout.tile)
    programs = cdiv(weight.outputs, tile.outputs) * blocks
    are_shared = splits > 1 and programs < ENOUGH_PROGRAMS
    sums = out
    if are_shared:
        sums = torch.empty(splits, results, weight.outputs, dtype=torch.float32, device=out.device)
    product_kernel[(cdiv(weight.outputs, tile.outputs), blocks, splits if are_shared else 1)](
        x, x.stride(0), results, weight.width, weight.order if groups is None else groups.columns,
        weight.data if groups is None else groups.addresses, at.high, at.factors, at.smalls, weight.table,
        weight.first, weight.outputs, weight.all_outputs, bias,
        sums, sums.stride(-2), sums.stride(0) if are_shared else 0,
        None if groups is None else groups.order, None if groups is None else groups.starts,
        1 if groups is None else groups.shared, splits, each, tiles,
        L=layout, DTYPE=POINTERS[weight.data.dtype], IS_ORDERED=weight.order is not None,
        GROUPS=number, ROOM=power_of_two(number), HAS_BIAS=bias is not None, ARE_SHARED=are_shared,
        OUTPUTS=tile.outputs, ROWS=tile.rows,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if are_shared:
        columns = min(FINISHED, power_of_two(weight.outputs))
        finish_kernel[(results, cdiv(weight.outputs, columns))](
            sums, splits, sums.stride(0), bias, out, out.stride(0), weight.outputs,
            HAS_BIAS=bias is not None, COLUMNS=columns, num_warps=4,
        )  # fmt: skip


def _most_blocks(results: int, groups: int, rows: int) -> int:
    """How many blocks of so many rows there can be at most, however results are shared out among groups."""
    return min(results, results // rows + groups)
