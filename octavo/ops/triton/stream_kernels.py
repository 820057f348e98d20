"""Several residual streams side by side in a row: see octavo.ops.streams and octavo.ops.alternating_streams."""

import triton
import triton.language as tl

from octavo.ops.triton.activation_kernels import sigmoid
from octavo.ops.triton.launching import rounded


@triton.jit
def _part(x, at, column, seen):
    return tl.load(x + at + column, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def streams_kernel(
    x,
    y,
    weights,
    out,
    rows,
    size,
    active,
    x_stride,
    y_stride,
    OPERATION: tl.constexpr,
    STREAMS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of one new stream; sums are in the order of streams."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column, own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :], tl.program_id(2)
    is_row, seen = row < rows, (row < rows) & (column < size)
    total = _part(x, row * x_stride + own * size, column, seen)
    if OPERATION == "add":
        if own > 0:
            total += _part(y, row * y_stride, column, seen)
    elif OPERATION == "correct":
        change = _part(y, row * y_stride, column, seen) - _part(x, row * x_stride + active * size, column, seen)
        total += change * (tl.load(weights + row * STREAMS + own, mask=is_row, other=0.0) + 1.0)
    else:
        # Where streams are mixed, what a piece gives is a term before them, with a weight of its own.
        TERMS: tl.constexpr = STREAMS + 1 if OPERATION == "mix" else STREAMS
        factors = weights + (row * STREAMS + own) * TERMS
        if OPERATION == "mix":
            total = _part(y, row * y_stride, column, seen) * tl.load(factors, mask=is_row, other=0.0)
        for j in range(STREAMS):
            factor = tl.load(factors + (TERMS - STREAMS) + j, mask=is_row, other=0.0)
            total += _part(x, row * x_stride + j * size, column, seen) * factor
    place = row * STREAMS * size + own * size + column
    tl.store(out + place, rounded(total, out.dtype.element_ty), mask=seen)


@triton.jit
def _divided(mix, eps, AXIS: tl.constexpr):
    return mix / (tl.expand_dims(tl.sum(mix, axis=AXIS), AXIS) + eps)


@triton.jit
def stream_weights_kernel(
    products,
    scale,
    bias,
    read,
    write,
    rows,
    stride,
    eps,
    iterations,
    COUNT: tl.constexpr,
    ROOM: tl.constexpr,
    IS_READ_ALONE: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    stream = tl.arange(0, ROOM)[None, :]
    is_there, seen = stream < COUNT, (stream < COUNT) & (row < rows)
    given = tl.load(products + row * stride + stream, mask=seen, other=0.0)
    given = given * tl.load(scale) + tl.load(bias + stream, mask=is_there, other=0.0)
    tl.store(read + row * COUNT + stream, sigmoid(given) + eps, mask=seen)
    if not IS_READ_ALONE:
        taken = tl.load(products + row * stride + COUNT + stream, mask=seen, other=0.0)
        taken = taken * tl.load(scale + 1) + tl.load(bias + COUNT + stream, mask=is_there, other=0.0)
        tl.store(write + (row * COUNT + stream) * (1 + COUNT), sigmoid(taken) * 2.0, mask=seen)
        # A matrix of what each stream (axis 1) gives to each (axis 2).
        one, other = tl.arange(0, ROOM)[None, :, None], tl.arange(0, ROOM)[None, None, :]
        each, is_one = row[:, :, None], (one < COUNT) & (other < COUNT)
        number = 2 * COUNT + one * COUNT + other
        mix = tl.load(products + each * stride + number, mask=is_one & (each < rows), other=0.0)
        mix = mix * tl.load(scale + 2) + tl.load(bias + number, mask=is_one, other=0.0)
        mix = tl.where(is_one, mix, float("-inf"))
        peak = tl.max(mix, axis=2)[:, :, None]
        mix = tl.where(is_one, tl.exp(mix - peak), 0.0)
        total = tl.sum(mix, axis=2)[:, :, None]
        mix = tl.where(is_one, mix / tl.where(one < COUNT, total, 1.0) + eps, 0.0)
        mix = _divided(mix, eps, 1)
        for _ in range(iterations - 1):
            mix = _divided(mix, eps, 2)
            mix = _divided(mix, eps, 1)
        place = (each * COUNT + other) * (1 + COUNT) + 1 + one
        tl.store(write + place, mix, mask=is_one & (each < rows))
