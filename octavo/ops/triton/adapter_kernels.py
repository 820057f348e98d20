"""What adapters make of a weight's results, as kernels: rows of one adapter (and expert) together.

An adapter is a row of ENTRY int64 numbers in its weight's table, which kernels read when they run: what is put there
later holds for steps that were recorded before.
"""

import triton
import triton.language as tl

from octavo.ops.triton.launching import dot, rounded
from octavo.ops.triton.product_kernels import find_group

ENTRY = 6
"""Addresses of the A's, of the parts, how many parts, the rank of all together, addresses of magnitude and bias."""
PART = 5
"""Of a part: its first output, how many there are, its rank, which of the inner values are its, where its B is."""


@triton.jit
def _of_block(table, order, starts, GROUPS: tl.constexpr, ROOM: tl.constexpr, ROWS: tl.constexpr):
    """A block's entry in the table (any, where it has none), its results' numbers, and which of these there are."""
    group, begin, end = find_group(starts, tl.program_id(1), GROUPS, ROOM, ROWS)
    places = begin + tl.arange(0, ROWS)
    mask = places < end  # a block of no group has none
    entry = table + tl.minimum(group, GROUPS - 1) * 6
    return entry, tl.load(order + places, mask, 0).to(tl.int64), mask


@triton.jit
def inner_kernel(
    x, x_stride, width, shared, table, order, starts, inner, inner_stride,
    DTYPE: tl.constexpr, GROUPS: tl.constexpr, ROOM: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """`inner` `[results, ranks]` float32: what all A's of a result's adapter make of its row of `x`.

    Programs of axis 0 share its values out, however many these turn out to be.
    """
    entry, r, r_mask = _of_block(table, order, starts, GROUPS, ROOM, ROWS)
    a = tl.multiple_of(tl.load(entry).to(tl.pointer_type(DTYPE)), 16)
    ranks = tl.load(entry + 3).to(tl.int32)
    from_x = x + (r // shared * x_stride)[None, :]
    for low in range(tl.program_id(0) * RANKS, ranks, tl.num_programs(0) * RANKS):
        rank = low + tl.arange(0, RANKS)
        is_rank = rank < ranks
        total = tl.zeros([RANKS, ROWS], tl.float32)
        for first in range(0, width, TILE):
            columns = first + tl.arange(0, TILE)
            inside = columns < width
            w = tl.load(a + (rank * width)[:, None] + columns[None, :], is_rank[:, None] & inside[None, :], 0.0)
            values = tl.load(from_x + columns[:, None], inside[:, None] & r_mask[None, :], 0.0)
            total = dot(w, rounded(values.to(tl.float32), DTYPE), total)
        to = inner + (r * inner_stride)[None, :] + rank[:, None]
        tl.store(to, total, is_rank[:, None] & r_mask[None, :])


@triton.jit
def change_kernel(
    y, y_stride, outputs, table, order, starts, inner, inner_stride,
    DTYPE: tl.constexpr, GROUPS: tl.constexpr, ROOM: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Change results `y` `[results, outputs]` in place by magnitude and bias, and by what the B's make of `inner`."""
    entry, r, r_mask = _of_block(table, order, starts, GROUPS, ROOM, ROWS)
    parts = tl.load(entry + 1).to(tl.pointer_type(tl.int64))
    magnitude, bias = tl.load(entry + 4), tl.load(entry + 5)
    begin = tl.program_id(0) * OUTPUTS
    o = (begin + tl.arange(0, OUTPUTS)).to(tl.int64)
    mask = (o < outputs)[:, None] & r_mask[None, :]
    at = y + (r * y_stride)[None, :] + o[:, None]
    total = tl.load(at, mask, 0.0).to(tl.float32)
    if magnitude != 0:
        total = total * tl.load(magnitude.to(tl.pointer_type(tl.float32)) + o, o < outputs, 0.0)[:, None]
    if bias != 0:
        total = total + tl.load(bias.to(tl.pointer_type(tl.float32)) + o, o < outputs, 0.0)[:, None]
    for number in range(tl.load(entry + 2).to(tl.int32)):
        part = parts + number * 5
        first, count, ranks, at_inner = tl.load(part), tl.load(part + 1), tl.load(part + 2), tl.load(part + 3)
        b = tl.multiple_of(tl.load(part + 4).to(tl.pointer_type(DTYPE)), 16)
        if (first < begin + OUTPUTS) & (first + count > begin):
            own = (o >= first) & (o < first + count)
            added = tl.zeros([OUTPUTS, ROWS], tl.float32)
            for low in range(0, ranks.to(tl.int32), RANKS):
                rank = low + tl.arange(0, RANKS)
                is_rank = rank < ranks
                w = tl.load(b + ((o - first) * ranks)[:, None] + rank[None, :], own[:, None] & is_rank[None, :], 0.0)
                values = tl.load(
                    inner + (r * inner_stride)[None, :] + (at_inner + rank)[:, None],
                    is_rank[:, None] & r_mask[None, :], 0.0,
                )  # fmt: skip
                added = dot(w, rounded(values, DTYPE), added)
            total = total + added
    tl.store(at, rounded(total, y.dtype.element_ty), mask)
