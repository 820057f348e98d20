"""Products of rows with weights of floats, whose bits do not depend on how many rows there are.

A weight's shape and dtype decide everything: the tile, and into how many parts the sum over its columns is split. Of
each part the sum is made column block by column block, and the parts are added in their order. Who adds them depends on
the rows, and changes no bit: where these are few, parts are computed by programs of their own, side by side, so that
the whole device reads the weight; where they are many, by one program one after the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.prepared import PackedHeads, PackedLinear, RowAdapters
from octavo.ops.specs import Gate
from octavo.ops.torch.products import table_rows
from octavo.ops.triton.activation_kernels import gate_of
from octavo.ops.triton.launching import (
    INTERPRETED,
    PRODUCT_ROWS,
    STAGES,
    cdiv,
    dot,
    power_of_two,
    rounded,
    together,
    wide,
)
from octavo.ops.triton.stored_weight import multiply, weight_of_floats
from octavo.ops.triton.triton_elementwise import TritonElementwise

PROGRAMS = 128
"""As many are wanted at work: the multiprocessors of large devices."""
MIN_BLOCKS = 4
"""Blocks of columns in a part of a sum, at least."""
MAX_SPLITS = 8

Tile = tuple[int, int, int]
"""Rows, outputs and terms of a program's step."""
TILES: dict[torch.dtype, Tile] = {
    # Products of 16 bits are the matrix units', whose smallest full tile has 64 rows: for one row it costs less time
    # than its weights take to come. Those of float32 are made of plain ones, of which empty rows cost as much.
    torch.bfloat16: (64, 128, 64),
    torch.float16: (64, 128, 64),
    torch.float32: (16, 64, 32),
}
INTERPRETED_TILE: Tile = (64, 256, 256)
"""Where a program costs more than what it computes."""


def tile_of(dtype: torch.dtype, outputs: int, width: int) -> Tile:
    """The tile of a weight."""
    rows, columns, terms = INTERPRETED_TILE if INTERPRETED else TILES[dtype]
    least = PRODUCT_ROWS
    return rows, min(columns, max(least, power_of_two(outputs))), min(terms, max(least, power_of_two(width)))


def splits_of(tile: Tile, outputs: int, width: int) -> int:
    """Into how many parts the sums of a weight are split: a power of two."""
    parts = min(PROGRAMS // cdiv(outputs, tile[1]), cdiv(width, tile[2]) // MIN_BLOCKS, MAX_SPLITS)
    return 1 << (max(1, parts).bit_length() - 1)


@triton.jit
def _terms(
    x,
    weight,
    row,
    column,
    is_row,
    is_column,
    row_stride,
    weight_stride,
    width,
    first,
    last,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """The sums over terms `first` to `last` of a tile of rows and outputs, in float32."""
    lane = tl.arange(0, TERMS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    source, by = x + row.to(tl.int64)[:, None] * row_stride, weight + column.to(tl.int64)[None, :] * weight_stride
    for k in range(first, last, TERMS):
        at = k + lane
        seen = at < width
        left = tl.load(source + at[None, :], mask=is_row[:, None] & seen[None, :], other=0.0)
        right = tl.load(by + at[:, None], mask=is_column[None, :] & seen[:, None], other=0.0)
        total = dot(rounded(wide(left), weight.dtype.element_ty), right, total)
    return total


@triton.jit
def _columns(outputs, COLUMNS: tl.constexpr, GATED: tl.constexpr):
    """A tile's outputs, and which there are. Gated: as many gates, then the ups that belong to them."""
    lane = tl.arange(0, COLUMNS)
    if GATED:
        half: tl.constexpr = COLUMNS // 2
        place = tl.program_id(1) * half + lane % half
        return place + tl.where(lane < half, 0, outputs // 2), place < outputs // 2
    column = tl.program_id(1) * COLUMNS + lane
    return column, column < outputs


@triton.jit
def product_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    outputs,
    width,
    part,
    row_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
):
    """A tile of the result, all parts of its sums one after the other."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    column, is_column = _columns(outputs, COLUMNS, GATED)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in range(SPLITS):
        first = split * part
        total += _terms(
            x, weight, row, column, is_row, is_column, row_stride, weight_stride, width,
            first, tl.minimum(first + part, width), ROWS, COLUMNS, TERMS,
        )  # fmt: skip
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0)[None, :]
    result = rounded(total, out.dtype.element_ty)
    if GATED:
        half: tl.constexpr = COLUMNS // 2
        halves = tl.permute(tl.reshape(wide(result), (ROWS, 2, half)), (0, 2, 1))
        first, up = tl.split(halves)
        result = rounded(gate_of(first, up, ACTIVATION, THRESHOLD, LIMIT, UP_OFFSET), out.dtype.element_ty)
        place = tl.program_id(1) * half + tl.arange(0, half)
        target = out + row.to(tl.int64)[:, None] * (outputs // 2) + place[None, :]
        tl.store(target, result, mask=is_row[:, None] & (place < outputs // 2)[None, :])
    else:
        target = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
        tl.store(target, result, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def part_kernel(
    x,
    weight,
    sums,
    rows,
    outputs,
    width,
    part,
    row_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """One part of the sums of a tile, to `sums` `[splits, rows, outputs]`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    column, is_column = _columns(outputs, COLUMNS, False)
    first = tl.program_id(2) * part
    total = _terms(
        x, weight, row, column, is_row, is_column, row_stride, weight_stride, width,
        first, tl.minimum(first + part, width), ROWS, COLUMNS, TERMS,
    )  # fmt: skip
    target = sums + (tl.program_id(2) * rows + row).to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(target, total, mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _summed(sums, bias, rows, outputs, row, column, mask, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The parts of `[splits, rows, outputs]`, added in their order as `product_kernel` adds them."""
    total = tl.zeros(column.shape, tl.float32)
    for split in range(SPLITS):
        total += tl.load(sums + (split * rows + row).to(tl.int64) * outputs + column, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=mask, other=0.0)
    return total


@triton.jit
def sum_up_kernel(
    sums,
    bias,
    out,
    rows,
    outputs,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
):
    """What `product_kernel` makes of its sums, of sums in parts."""
    row, place = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    given = outputs // 2 if GATED else outputs
    mask = place < given
    total = rounded(_summed(sums, bias, rows, outputs, row, place, mask, SPLITS, HAS_BIAS), out.dtype.element_ty)
    if GATED:
        up = _summed(sums, bias, rows, outputs, row, place + given, mask, SPLITS, HAS_BIAS)
        up = wide(rounded(up, out.dtype.element_ty))
        gated = gate_of(wide(total), up, ACTIVATION, THRESHOLD, LIMIT, UP_OFFSET)
        total = rounded(gated, out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * given + place, total, mask=mask)


@triton.jit
def heads_kernel(
    x,
    weight,
    out,
    rows,
    outputs,
    width,
    row_stride,
    head_stride,
    weight_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """A tile of one head's results; its outputs' weights lie one after the other."""
    row, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(2)
    is_row = row < rows
    column, is_column = _columns(outputs, COLUMNS, False)
    total = _terms(
        x + head.to(tl.int64) * head_stride, weight, row, head * outputs + column, is_row, is_column,
        row_stride, weight_stride, width, 0, width, ROWS, COLUMNS, TERMS,
    )  # fmt: skip
    target = out + (row.to(tl.int64)[:, None] * tl.num_programs(2) + head) * outputs + column[None, :]
    tl.store(target, rounded(total, out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


UNGATED = (False, None, None, None, 0.0)
SUM_COLUMNS = 1024
"""Of a program that adds up parts."""


def gate_constants(gate: Gate) -> tuple[bool, str | None, float | None, float | None, float]:
    """What kernels are compiled for, beside GATED."""
    return True, gate.activation, gate.threshold, gate.limit, float(gate.up_offset)


class TritonLinear:
    """The weight `[out, in]` as it is, and how it is multiplied with.

    Args:
        weight: in float32, float16 or bfloat16.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight = together(weight)
        self._outputs, self._width = weight.shape
        self.tile = tile_of(weight.dtype, self._outputs, self._width)
        self.splits = splits_of(self.tile, self._outputs, self._width)
        self._part = cdiv(cdiv(self._width, self.tile[2]), self.splits) * self.tile[2]
        self._options = launch_options(weight.dtype)
        self.most_programs = PROGRAMS
        """Where a result has fewer tiles, parts of sums are computed side by side."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype == self.weight.dtype:
            return self._multiply(x, bias, UNGATED)
        out = torch.empty(len(x), self._outputs, dtype=x.dtype, device=x.device)
        multiply(weight_of_floats(self.weight), x, out, bias)  # both as float32
        return out

    def gated(self, x: Tensor, bias: Tensor | None, gate: Gate) -> Tensor:
        """`gate` of the two halves of the result, each rounded first."""
        return self._multiply(x, bias, gate_constants(gate))

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0, first: int | None = None) -> Tensor:
        found = table_rows(self.weight, ids, first).to(dtype)
        return found if scale == 1.0 else found * scale

    def _multiply(
        self, x: Tensor, bias: Tensor | None, gate: tuple[bool, str | None, float | None, float | None, float]
    ) -> Tensor:
        rows, outputs, width = len(x), self._outputs, self._width
        x, weight = together(x), self.weight
        out = torch.empty(rows, outputs // 2 if gate[0] else outputs, dtype=x.dtype, device=x.device)
        if not rows:
            return out
        grid, by = (cdiv(rows, self.tile[0]), cdiv(outputs, self.tile[1])), weight if bias is None else bias
        sizes = rows, outputs, width, self._part, x.stride(0), weight.stride(0)
        if self.splits == 1 or grid[0] * grid[1] >= self.most_programs:
            product_kernel[grid](
                x, weight, by, out, *sizes, *self.tile, self.splits, bias is not None, *gate, **self._options
            )
            return out
        sums = torch.empty(self.splits, rows, outputs, dtype=torch.float32, device=x.device)
        part_kernel[(*grid, self.splits)](x, weight, sums, *sizes, *self.tile, **self._options)
        columns = min(SUM_COLUMNS, power_of_two(out.shape[1]))
        each = rows, cdiv(out.shape[1], columns)
        sum_up_kernel[each](sums, by, out, rows, outputs, columns, self.splits, bias is not None, *gate)
        return out


class TritonHeads:
    """A weight for each head (or group): `[heads * out, in]`.

    Args:
        weight: the heads' one after the other.
        heads: how many.
    """

    def __init__(self, weight: Tensor, heads: int) -> None:
        self._weight, self._heads = together(weight), heads
        self._outputs, self._width = len(weight) // heads, weight.shape[1]
        self._tile = tile_of(weight.dtype, self._outputs, self._width)
        self._options = launch_options(weight.dtype)

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        rows, x = len(x), together(x)
        out = torch.empty(rows, self._heads, self._outputs, dtype=dtype, device=x.device)
        if rows:
            grid = cdiv(rows, self._tile[0]), cdiv(self._outputs, self._tile[1]), self._heads
            sizes = rows, self._outputs, self._width, x.stride(0), x.stride(1), self._weight.stride(0)
            heads_kernel[grid](x, self._weight, out, *sizes, *self._tile, **self._options)
        return out


def launch_options(dtype: torch.dtype) -> dict[str, int]:
    """Warps, and how many blocks of terms are on their way."""
    return {"num_warps": 4, "num_stages": STAGES if dtype.itemsize == 2 else 2}


class TritonProducts(TritonElementwise):
    """The products of floats."""

    def linear(self, weight: Tensor, apart: bool = False) -> PackedLinear:
        return TritonLinear(weight)

    def head_linear(self, weight: Tensor) -> PackedHeads:
        return TritonHeads(weight.reshape(-1, weight.shape[2]), len(weight))

    def group_linear(self, weight: PackedLinear, groups: int) -> PackedHeads:
        if isinstance(weight, TritonLinear):
            return TritonHeads(weight.weight, groups)
        return super().group_linear(weight, groups)

    def gated_linear(
        self,
        gate_up: PackedLinear,
        x: Tensor,
        bias: Tensor | None,
        gate: Gate,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        if adapters is None and isinstance(gate_up, TritonLinear) and x.dtype == gate_up.weight.dtype:
            return gate_up.gated(x, bias, gate)
        y = gate_up(x, bias)
        if adapters is not None:
            adapters.table.apply(x, y, adapters.slots)
        return self.gated(y, gate)
