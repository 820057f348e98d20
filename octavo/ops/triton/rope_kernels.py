"""What follows from a token's position, but for attention's own heads (head_kernels.py)."""

import triton
import triton.language as tl

from octavo.ops.triton.launching import rounded


@triton.jit
def turned_kernel(
    x,
    y,
    cos,
    sin,
    out,
    rows,
    heads,
    columns,
    width,
    x_row,
    x_head,
    y_row,
    y_head,
    PAIRS: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    IS_BACKWARDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of a head of each row, `columns` values of `x`, then those of `y`, the first `2 * PAIRS` rotated."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    head, column = tl.program_id(1), tl.arange(0, COLUMNS)[None, :]
    is_row, place = row < rows, column - columns
    is_turned = (place >= 0) & (place < 2 * PAIRS)
    own = y + row * y_row + head * y_head
    value = tl.load(own + place, mask=is_row & (place >= 0) & (column < width), other=0.0).to(tl.float32)
    if PAIRS > 0:
        if IS_INTERLEAVED:
            pair, is_second = place // 2, place % 2
            partner = place + 1 - 2 * is_second
        else:
            pair, is_second = place % PAIRS, (place >= PAIRS).to(tl.int32)
            partner = place + PAIRS - 2 * PAIRS * is_second
        seen = is_row & is_turned
        other = tl.load(own + partner, mask=seen, other=0.0).to(tl.float32)
        by = tl.load(sin + row * PAIRS + pair, mask=seen, other=0.0)
        if IS_BACKWARDS:
            by = -by
        turn = other * by
        turned = value * tl.load(cos + row * PAIRS + pair, mask=seen, other=0.0)
        value = tl.where(is_turned, tl.where(is_second != 0, turned + turn, turned - turn), value)
    kept = tl.load(x + row * x_row + head * x_head + column, mask=is_row & (place < 0), other=0.0).to(tl.float32)
    value = tl.where(place < 0, kept, value)
    target = (row * heads + head) * width + column
    tl.store(out + target, rounded(value, out.dtype.element_ty), mask=is_row & (column < width))


@triton.jit
def position_factors_kernel(positions, out, count, offset, beta, period, BLOCK: tl.constexpr):
    """In float64, in which `1 + periods` is a whole number."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    shifted = tl.load(positions + at, mask=at < count, other=0) + offset
    periods = tl.floor(shifted.to(tl.float64) / tl.load(period))
    factors = tl.log(1.0 + periods) * tl.load(beta) + 1.0
    tl.store(out + at, factors.to(tl.float32), mask=at < count)
