"""What is done to each head before attention: norms, a clip, rope, and the way into the cache."""

import triton
import triton.language as tl

from octavo.ops.triton.cached_numbers import INT4_BYTES, INT4_CODES, INT4_GROUP
from octavo.ops.triton.launching import nearest, rounded

NO_NORM: tl.constexpr = tl.constexpr(0)
RMS: tl.constexpr = tl.constexpr(1)
LAYER: tl.constexpr = tl.constexpr(2)
LARGEST: tl.constexpr = tl.constexpr(65504.0)
"""Of float16."""


@triton.jit
def _clipped(x, LIMIT: tl.constexpr, DTYPE: tl.constexpr):
    if LIMIT is not None:
        x = tl.maximum(x, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
        x = rounded(tl.minimum(x, LIMIT, propagate_nan=tl.PropagateNan.ALL), DTYPE).to(tl.float32)
    return x


@triton.jit
def _norm_factors(x, columns, DIM: tl.constexpr, KIND: tl.constexpr, eps):
    """Mean and factor of each row of `x`, whose columns past DIM are zero."""
    mean = tl.sum(x, 1) * 0.0
    if KIND == LAYER:
        mean = tl.sum(x, 1) / DIM
    off = tl.where((columns < DIM)[None, :], x - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt_rn(tl.sum(off * off, 1) / DIM + eps)


@triton.jit
def _normed(x, mean, factor, weight, bias, columns, is_column, KIND: tl.constexpr, DTYPE: tl.constexpr):
    if KIND != NO_NORM:
        x = (x - mean[:, None]) * factor[:, None]
        if weight is not None:
            x *= tl.load(weight + columns, mask=is_column, other=0.0)[None, :]
        if bias is not None:
            x += tl.load(bias + columns, mask=is_column, other=0.0)[None, :]
        x = rounded(x, DTYPE).to(tl.float32)
    return x


@triton.jit
def _store_int4(cache, x, slots, is_row, head, columns, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """See octavo.ops.torch.cached_rows: the same bytes."""
    ROWS: tl.constexpr = x.shape[0]
    ALL: tl.constexpr = x.shape[1] // INT4_GROUP
    GROUPS: tl.constexpr = (DIM + INT4_GROUP - 1) // INT4_GROUP
    last = tl.sum(tl.where((columns == DIM - 1)[None, :], x, 0.0), 1)
    x = tl.reshape(tl.where((columns < DIM)[None, :], x, last[:, None]), [ROWS, ALL, INT4_GROUP])
    low = tl.minimum(tl.maximum(tl.min(x, 2), -LARGEST), LARGEST).to(tl.float16)
    scale = tl.div_rn(tl.max(x, 2) - low.to(tl.float32), tl.full([ROWS, ALL], 15.0, tl.float32))
    # What is not finite, times zero, is not a number, which the largest would pass over.
    scale = (tl.minimum(tl.maximum(scale, 0.0), LARGEST) + tl.sum(x * 0.0, 2)).to(tl.float16)
    by = scale.to(tl.float32)
    inverse = tl.where(by > 0, tl.div_rn(1.0, tl.where(by > 0, by, 1.0)), 0.0)
    codes = tl.minimum((x - low.to(tl.float32)[:, :, None]) * inverse[:, :, None], 15.0)
    codes = nearest(tl.where(codes > 0, codes, 0.0)).to(tl.int32)
    halves = tl.reshape(codes, [ROWS, ALL, 2, INT4_CODES])
    pairs = tl.sum(halves << (tl.arange(0, 2) * 4)[None, None, :, None], 2)

    groups = tl.arange(0, ALL)
    place = cache + ((slots // BLOCK * HEADS + head) * BLOCK + slots % BLOCK) * (GROUPS * INT4_BYTES)
    place = place[:, None] + (groups * INT4_BYTES)[None, :]
    mask = is_row[:, None] & (groups < GROUPS)[None, :]
    tl.store(place[:, :, None] + tl.arange(0, INT4_CODES)[None, None, :], pairs.to(tl.uint8), mask=mask[:, :, None])
    factors = (place + INT4_CODES).to(tl.pointer_type(tl.float16))
    tl.store(factors, scale, mask=mask)
    tl.store(factors + 1, low, mask=mask)


@triton.jit
def _store(cache, x, slots, is_row, head, columns, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `x` `[rows, columns]` of a head to their slots, as the cache has numbers."""
    IS_INT8: tl.constexpr = cache.dtype.element_ty == tl.int8
    ROW: tl.constexpr = DIM + 4 if IS_INT8 else DIM
    place = cache + ((slots // BLOCK * HEADS + head) * BLOCK + slots % BLOCK) * ROW
    mask = is_row[:, None] & (columns < DIM)[None, :]
    if cache.dtype.element_ty == tl.uint8:
        _store_int4(cache, x, slots, is_row, head, columns, HEADS, DIM, BLOCK)
    elif IS_INT8:
        size = tl.abs(tl.where((columns < DIM)[None, :], x, 0.0))
        # The largest, or what is not a number, which the largest would pass over.
        peak = tl.max(size, 1) + tl.sum(size * 0.0, 1)
        factor = tl.where(peak > 0, tl.div_rn(127.0, tl.where(peak > 0, peak, 1.0)), 0.0)
        codes = nearest(x * factor[:, None])
        tl.store(place[:, None] + columns[None, :], codes.to(tl.int32).to(tl.int8), mask=mask)
        bits = tl.div_rn(peak, tl.full(peak.shape, 127.0, tl.float32)).to(tl.int32, bitcast=True)
        for i in tl.static_range(4):
            tl.store(place + DIM + i, ((bits >> (8 * i)) & 255).to(tl.int8), mask=is_row)
    else:
        tl.store(place[:, None] + columns[None, :], rounded(x, cache.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def store_kernel(
    x,
    cache,
    slots,
    count,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of all heads to the cache. Program ids: which ROWS of them; the head."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    own = tl.load(slots + rows, mask=rows < count, other=-1)
    is_row, head = own >= 0, tl.program_id(1)
    place = x + rows.to(tl.int64)[:, None] * row_stride + head * head_stride + columns[None, :]
    given = tl.load(place, mask=is_row[:, None] & (columns < DIM)[None, :], other=0.0).to(tl.float32)
    _store(cache, given, own, is_row, head, columns, HEADS, DIM, BLOCK)


@triton.jit(do_not_specialize=["count"])
def heads_kernel(
    qkv,
    row_stride,
    query,
    keys,
    values,
    slots,
    count,
    cos,
    sin,
    query_weight,
    query_bias,
    query_eps,
    key_weight,
    key_bias,
    key_eps,
    value_weight,
    value_bias,
    value_eps,
    column_weights,
    row_factors,
    NUM_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    CLIP_BEFORE: tl.constexpr,
    CLIP_AFTER: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    KEY_NORM: tl.constexpr,
    VALUE_NORM: tl.constexpr,
    WEIGHT_STEP: tl.constexpr,
    KEY_WEIGHT_STEP: tl.constexpr,
):
    """Queries to `query`, keys and values to the cache.

    Program ids: which ROWS of the rows; the head, of queries, keys and values one after the other.
    """
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    rows, head = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    own = tl.load(slots + rows, mask=rows < count, other=-1)
    is_row = rows < count
    base = qkv + rows.to(tl.int64) * row_stride
    if head >= NUM_HEADS + KV_HEADS:
        _value_head(
            base + (NUM_HEADS + KV_HEADS) * DIM, values, own, is_row, head - NUM_HEADS - KV_HEADS,
            value_weight, value_bias, value_eps,
            KV_HEADS, VALUE_DIM, VALUE_WIDTH, BLOCK, CLIP_BEFORE, CLIP_AFTER, VALUE_NORM, DTYPE,
        )  # fmt: skip
    else:
        columns = tl.arange(0, WIDTH)
        if IS_INTERLEAVED:
            other, pair, is_first = columns ^ 1, columns // 2, columns % 2 == 0
        else:
            is_first = columns < PAIRS
            other = tl.where(is_first, columns + PAIRS, columns - PAIRS)
            pair = tl.minimum(columns, other)
        turns = columns < 2 * PAIRS
        other = tl.where(turns, other, columns)
        if head < NUM_HEADS:
            x = _placed(
                base + head * DIM, is_row, columns, other, turns, is_first, pair, cos, sin, rows,
                query_weight, query_bias, query_eps, head * WEIGHT_STEP,
                DIM, PAIRS, CLIP_BEFORE, CLIP_AFTER, QUERY_NORM, DTYPE,
            )  # fmt: skip
            if column_weights is not None:
                x *= tl.load(column_weights + columns, mask=columns < DIM, other=0.0)[None, :]
            if row_factors is not None:
                x *= tl.load(row_factors + rows, mask=is_row, other=0.0)[:, None]
            place = query + (rows.to(tl.int64)[:, None] * NUM_HEADS + head) * DIM + columns[None, :]
            mask = is_row[:, None] & (columns < DIM)[None, :]
            tl.store(place, rounded(x, query.dtype.element_ty), mask=mask)
        else:
            kv_head = head - NUM_HEADS
            x = _placed(
                base + head * DIM, is_row, columns, other, turns, is_first, pair, cos, sin, rows,
                key_weight, key_bias, key_eps, kv_head * KEY_WEIGHT_STEP,
                DIM, PAIRS, CLIP_BEFORE, CLIP_AFTER, KEY_NORM, DTYPE,
            )  # fmt: skip
            _store(keys, x, own, is_row & (own >= 0), kv_head, columns, KV_HEADS, DIM, BLOCK)


@triton.jit
def _value_head(
    base,
    values,
    own,
    is_row,
    kv_head,
    weight,
    bias,
    eps,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CLIP_BEFORE: tl.constexpr,
    CLIP_AFTER: tl.constexpr,
    NORM: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A function of its own: where branches of one give a name two widths, it does not compile."""
    columns = tl.arange(0, WIDTH)
    is_column = columns < DIM
    mask = is_row[:, None] & is_column[None, :]
    x = tl.load((base + kv_head * DIM)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    x = _clipped(x, CLIP_BEFORE, DTYPE)
    mean, factor = _norm_factors(x, columns, DIM, NORM, eps)
    x = _clipped(_normed(x, mean, factor, weight, bias, columns, is_column, NORM, DTYPE), CLIP_AFTER, DTYPE)
    _store(values, x, own, is_row & (own >= 0), kv_head, columns, KV_HEADS, DIM, BLOCK)


@triton.jit
def _placed(
    place,
    is_row,
    columns,
    other,
    turns,
    is_first,
    pair,
    cos,
    sin,
    rows,
    weight,
    bias,
    eps,
    weight_at,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    CLIP_BEFORE: tl.constexpr,
    CLIP_AFTER: tl.constexpr,
    NORM: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A head's rows, normed, clipped and rotated; `other` is the column that a column makes a pair with."""
    if weight is not None:
        weight += weight_at
    if bias is not None:
        bias += weight_at
    is_column = columns < DIM
    x = tl.load(place[:, None] + columns[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
    x = _clipped(x.to(tl.float32), CLIP_BEFORE, DTYPE)
    mean, factor = _norm_factors(x, columns, DIM, NORM, eps)
    x = _clipped(_normed(x, mean, factor, weight, bias, columns, is_column, NORM, DTYPE), CLIP_AFTER, DTYPE)
    if PAIRS > 0:
        mask = is_row[:, None] & turns[None, :]
        y = _clipped(tl.load(place[:, None] + other[None, :], mask=mask, other=0.0).to(tl.float32), CLIP_BEFORE, DTYPE)
        y = _clipped(_normed(y, mean, factor, weight, bias, other, turns, NORM, DTYPE), CLIP_AFTER, DTYPE)
        angles = rows[:, None] * PAIRS + pair[None, :]
        c, s = tl.load(cos + angles, mask=mask, other=1.0), tl.load(sin + angles, mask=mask, other=0.0)
        turned = tl.where(is_first[None, :], x * c - y * s, x * c + y * s)
        x = tl.where(turns[None, :], turned, x)
    return x
