"""What kernels read of a cache: where its rows lie, and the numbers in them."""

import triton
import triton.language as tl

from octavo.ops.paged_cache import GROUP, GROUP_BYTES, GROUP_CODES
from octavo.ops.triton.launching import rounded

INT4_GROUP: tl.constexpr = tl.constexpr(GROUP)
INT4_CODES: tl.constexpr = tl.constexpr(GROUP_CODES)
INT4_BYTES: tl.constexpr = tl.constexpr(GROUP_BYTES)
"""Numbers of a row of an int4 cache that have a scale and a low; the bytes of their codes, and of all of it."""


@triton.jit
def key_rows(
    positions, valid, block_table, table_width, table_row, kv_head, BLOCK: tl.constexpr, KV_HEADS: tl.constexpr
):
    """Rows of the cache, or of keys side by side (BLOCK 0), where `table_row` is a run's first."""
    if BLOCK == 0:
        rows = (table_row + positions) * KV_HEADS + kv_head
    else:
        columns = positions // BLOCK
        blocks = tl.load(block_table + table_row * table_width + columns, mask=valid, other=0)
        rows = (blocks * KV_HEADS + kv_head) * BLOCK + positions % BLOCK
    return tl.where(valid, rows, 0)


@triton.jit
def entry_rows(numbers, valid, block_table, table_width, table_row, BLOCK: tl.constexpr, RATIO: tl.constexpr):
    """Rows of a cache of one head whose row `number` is of RATIO tokens, and lies in the block of the last of them."""
    last = (numbers + 1) * RATIO - 1
    blocks = tl.load(block_table + table_row * table_width + last // BLOCK, mask=valid, other=0)
    return tl.where(valid, blocks * ((BLOCK + RATIO - 1) // RATIO) + last % BLOCK // RATIO, 0)


@triton.jit
def numbers_of(pointer, rows, valid, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, ROW: tl.constexpr):
    """`[keys, WIDTH]`: columns from FIRST on of rows of DIM numbers."""
    columns = FIRST + tl.arange(0, WIDTH)
    mask = valid[:, None] & (columns < DIM)[None, :]
    return tl.load(pointer + rows[:, None] * ROW + columns[None, :], mask=mask, other=0)


@triton.jit
def held_numbers(
    pointer,
    rows,
    valid,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    IS_INT4: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """`[keys, WIDTH]` of a cache's rows in COMPUTE: int8's codes as they are, int4's as the numbers that they mean."""
    if IS_INT4:
        columns = FIRST + tl.arange(0, WIDTH)
        mask = valid[:, None] & (columns < DIM)[None, :]
        group = pointer + rows[:, None] * ROW + (columns // INT4_GROUP * INT4_BYTES)[None, :]
        pair = tl.load(group + (columns % INT4_CODES)[None, :], mask=mask, other=0).to(tl.int32)
        code = pair >> (columns // INT4_CODES % 2 * 4)[None, :] & 15
        factors = (group + INT4_CODES).to(tl.pointer_type(tl.float16))
        scale = tl.load(factors, mask=mask, other=0.0).to(tl.float32)
        low = tl.load(factors + 1, mask=mask, other=0.0).to(tl.float32)
        return rounded(code.to(tl.float32) * scale + low, COMPUTE)
    else:
        return numbers_of(pointer, rows, valid, FIRST, WIDTH, DIM, ROW).to(COMPUTE)


@triton.jit
def row_scales(pointer, rows, valid, DIM: tl.constexpr, ROW: tl.constexpr):
    """`[keys]` float32: the scale behind each row's codes, whose bytes need not lie at a multiple of four."""
    bits = tl.zeros(rows.shape, tl.int32)
    for i in tl.static_range(4):
        byte = tl.load(pointer + rows * ROW + DIM + i, mask=valid, other=0)
        bits |= (byte.to(tl.int32) & 255) << (8 * i)
    return bits.to(tl.float32, bitcast=True)
