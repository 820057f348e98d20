"""A weight as kernels multiply with it: one kind, quantized or of floats."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from octavo.ops.stored_rows import FLOATS, StoredRows
from octavo.ops.torch.products import table_rows
from octavo.ops.triton.grouping import Groups, aligned, most_blocks
from octavo.ops.triton.launching import cdiv, power_of_two, together
from octavo.ops.triton.product_kernels import finish_kernel, product_kernel, rows_kernel
from octavo.ops.triton.product_tiles import ENOUGH_PROGRAMS, FLOAT_TILE, ONE_INSTRUCTION, Tiles, splits_for, tiles_for
from octavo.ops.triton.stored_layouts import LAYOUTS, Layout, Value
from octavo.ops.triton.stored_planes import Places, pack, padded_columns, places
from octavo.ops.weight_kinds import WeightKind

POINTERS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.uint8: tl.uint8,
}
GateConstants = tuple[bool, str | None, float | None, float | None, float]
"""Whether there is a gate, and what it is: what kernels are compiled for."""
UNGATED: GateConstants = (False, None, None, None, 0.0)
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


def weight_of_floats(weight: Tensor) -> StoredWeight:
    """Of a matrix `[outputs, width]` on the device, in its memory where that may be."""
    weight = aligned(weight)
    outputs, width = weight.shape
    return StoredWeight(FLOATS[weight.dtype], outputs, width, weight, 0, outputs)


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
    weight = StoredWeight(kind, outputs, width, data, 0, outputs, order)
    _ = weight.table  # a step that is recorded copies nothing to the device
    return weight


@dataclass(frozen=True)
class _Launch:
    """How a product of so many results is launched."""

    weight: StoredWeight
    results: int
    groups: Groups | None
    tile: Tiles
    blocks: int
    splits: int
    tiles_of_split: int
    are_shared: bool
    """Whether splits are computed side by side."""

    def run(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Fill `out` `[rows, outputs]`, or `[splits, rows, outputs]` float32 where splits are shared out."""
        weight, groups, at = self.weight, self.groups, self.weight.places
        product_kernel[(cdiv(weight.outputs, self.tile.outputs), self.blocks, self.splits if self.are_shared else 1)](
            x, x.stride(0), self.results, weight.width, weight.order if groups is None else groups.columns,
            weight.data if groups is None else groups.addresses, at.high, at.factors, at.smalls, weight.table,
            weight.first, weight.outputs, weight.all_outputs, bias,
            out, out.stride(-2), out.stride(0) if self.are_shared else 0,
            None if groups is None else groups.order, None if groups is None else groups.starts,
            1 if groups is None else groups.shared, self.splits, self.tiles_of_split,
            cdiv(weight.columns, weight.layout.tile),
            L=weight.layout, DTYPE=POINTERS[weight.data.dtype], IS_ORDERED=weight.order is not None,
            GROUPS=_number(groups), ROOM=power_of_two(_number(groups)), HAS_BIAS=bias is not None,
            ARE_SHARED=self.are_shared, OUTPUTS=self.tile.outputs, ROWS=self.tile.rows,
            num_warps=self.tile.warps, num_stages=self.tile.stages, **ONE_INSTRUCTION,
        )  # fmt: skip

    def finish(self, x: Tensor, bias: Tensor | None, out: Tensor, gate: GateConstants = UNGATED) -> None:
        """Fill `out` with what programs that share splits out give, and the gate makes of it."""
        outputs = self.weight.outputs
        sums = torch.empty(self.splits, self.results, outputs, dtype=torch.float32, device=out.device)
        self.run(x, None, sums)
        columns = min(FINISHED, power_of_two(out.shape[1]))
        finish_kernel[(self.results, cdiv(out.shape[1], columns))](
            sums, self.splits, sums.stride(0), bias, out, out.stride(0), outputs, bias is not None, columns, *gate,
            num_warps=4,
        )  # fmt: skip


def _number(groups: Groups | None) -> int:
    return 0 if groups is None else len(groups.addresses)


def _launch(weight: StoredWeight, x: Tensor, results: int, groups: Groups | None = None) -> _Launch:
    number, layout = _number(groups), weight.layout
    of_floats = layout.value is Value.FLOAT and weight.data.dtype != x.dtype  # which are multiplied as float32
    tile = tiles_for(weight.outputs, cdiv(results, max(1, number)), torch.float32 if of_floats else x.dtype)
    blocks = cdiv(results, tile.rows) if groups is None else most_blocks(results, number, tile.rows)
    splits, each = splits_for(weight.outputs, cdiv(weight.columns, layout.tile), layout.tile)
    are_shared = splits > 1 and cdiv(weight.outputs, tile.outputs) * blocks < ENOUGH_PROGRAMS
    return _Launch(weight, results, groups, tile, blocks, splits, each, are_shared)


def multiply(
    weight: StoredWeight, x: Tensor, out: Tensor, bias: Tensor | None = None, groups: Groups | None = None
) -> None:
    """Fill `out` `[rows, outputs]`, whose rows may lie apart, with `x @ weight.T + bias`.

    With `groups`, results are of several weights that are alike; `weight` is one of them, and there is no bias.
    """
    if out.numel():
        launch = _launch(weight, x, len(out), groups)
        (launch.finish if launch.are_shared else launch.run)(together(x), bias, out)


def multiply_gated(weight: StoredWeight, x: Tensor, bias: Tensor | None, gate: GateConstants) -> Tensor | None:
    """The gate of the two halves of `x @ weight.T + bias`, each rounded first; None where rows are too many."""
    launch = _launch(weight, x, len(x))
    if not launch.are_shared or not len(x):
        return None
    out = torch.empty(len(x), weight.outputs // 2, dtype=x.dtype, device=x.device)
    launch.finish(together(x), bias, out, gate)
    return out
