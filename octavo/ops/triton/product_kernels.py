"""Products of rows with weights as they are stored, and what is made of their sums.

A result is a sum over columns in *splits* of as many tiles each, which the weight's shape alone decides. Within a split
columns are summed in ascending order; what splits give is added in their order, by the program that has computed them
one after the other, or, of few rows, by another kernel, where programs have shared them out. Weights are the left
operand of `dot`: so a tile of outputs meets one instruction whatever the number of rows, and unpacked weights need not
leave their registers on the way to it.
"""

import triton
import triton.language as tl

from octavo.ops.triton.activation_kernels import gate_of
from octavo.ops.triton.launching import dot, rounded
from octavo.ops.triton.stored_kernels import codes_of, high_bits, low_bits, scaled


@triton.jit
def _load_columns(x, x_mask, columns, width, places, IS_ORDERED: tl.constexpr):
    """`[columns, rows]` values of rows whose addresses `x` are, `[1, rows]`; `places` has which column each is."""
    inside = columns < width
    at = columns.to(tl.int64)
    if IS_ORDERED:
        at = tl.load(places + columns, inside, 0)
    return tl.load(x + at[:, None], x_mask & inside[:, None], 0.0)


@triton.jit
def _add_codes(
    total, x, x_mask, width, places, weight, high_at, factors_at, smalls_at, table, tile, o, o_mask, outputs,
    L: tl.constexpr, IS_ORDERED: tl.constexpr,
):  # fmt: skip
    """`total` `[outputs, rows]` and what one tile of columns adds to it."""
    high = tl.zeros([1, 1], tl.uint8)
    if L.high != 0:
        high = high_bits(weight + high_at, tile, o, o_mask, outputs, L)
    LOADS: tl.constexpr = L.loads
    SHIFTS: tl.constexpr = 8 // L.low
    for load in tl.static_range(LOADS):
        low = low_bits(weight, tile, load, o, o_mask, outputs, L)
        for shift in tl.static_range(SHIFTS):
            code = codes_of(low, high, load, shift, L)
            first = tile * L.tile + (shift * L.loads + load) * L.piece
            w = scaled(code, weight + factors_at, weight + smalls_at, table, first, o, o_mask, outputs, L)
            values = _load_columns(x, x_mask, first + tl.arange(0, L.piece), width, places, IS_ORDERED)
            total = dot(rounded(w, values.dtype), values, total)
    return total


@triton.jit
def _add_floats(total, x, x_mask, width, places, weight, tile, o, o_mask, L: tl.constexpr, IS_ORDERED: tl.constexpr):
    """The same of a weight of floats that lies row by row. Of two dtypes both are taken as float32."""
    columns = tile * L.tile + tl.arange(0, L.tile)
    inside = columns < width
    w = tl.load(weight + (o * width)[:, None] + columns[None, :], o_mask[:, None] & inside[None, :], 0.0)
    values = _load_columns(x, x_mask, columns, width, places, IS_ORDERED)
    if w.dtype == values.dtype:
        return dot(w, values, total)
    else:
        return dot(w.to(tl.float32), values.to(tl.float32), total)


@triton.jit
def _add_tiles(
    total, begin, end, x, x_mask, width, places, weight, high_at, factors_at, smalls_at, table, o, o_mask, outputs,
    L: tl.constexpr, IS_ORDERED: tl.constexpr,
):  # fmt: skip
    """`total` and what tiles from `begin` to `end` add to it, in their order."""
    for tile in range(begin, end):
        if L.value == 5:
            total = _add_floats(total, x, x_mask, width, places, weight, tile, o, o_mask, L, IS_ORDERED)
        else:
            total = _add_codes(
                total, x, x_mask, width, places, weight, high_at, factors_at, smalls_at, table, tile, o, o_mask,
                outputs, L, IS_ORDERED,
            )  # fmt: skip
    return total


@triton.jit
def find_group(starts, block, GROUPS: tl.constexpr, ROOM: tl.constexpr, ROWS: tl.constexpr):
    """Which group a block of ROWS rows is of, and where its rows begin and the group's end; GROUPS if of none.

    Groups have blocks of their own one after the other. `starts` `[GROUPS + 1]` is where their rows begin.
    """
    each = tl.arange(0, ROOM)
    is_group = each < GROUPS
    first = tl.load(starts + each, is_group, 0)
    last = tl.load(starts + each + 1, is_group, 0)
    blocks = (last - first + ROWS - 1) // ROWS
    ends = tl.cumsum(blocks, 0)
    group = tl.sum(tl.where(is_group & (ends <= block), 1, 0), 0)
    is_own = each == group
    begin = tl.sum(tl.where(is_own, first + (block - (ends - blocks)) * ROWS, 0), 0)
    return group, begin, tl.sum(tl.where(is_own, last, 0), 0)


@triton.jit
def product_kernel(
    x, x_stride, rows, width, columns,
    weight, high_at, factors_at, smalls_at, table, first_output, outputs, all_outputs,
    bias, out, out_stride, part_stride,
    order, starts, shared, splits, tiles_of_split, tiles,
    L: tl.constexpr, DTYPE: tl.constexpr, IS_ORDERED: tl.constexpr, GROUPS: tl.constexpr, ROOM: tl.constexpr,
    HAS_BIAS: tl.constexpr, ARE_SHARED: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`out` `[rows, outputs]`, or where splits are shared out `[splits, rows, outputs]`, one for each program.

    With GROUPS, `weight` has the addresses of as many weights, rows of group g are multiplied with that of g, and row
    `i` of the result is of row `i // shared` of `x`. `order` has the results' numbers, group by group from `starts` on.
    Where it IS_ORDERED, a weight's columns are those of rows that `columns` says, or what has its address.
    """
    o = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    o_mask = o < outputs
    if GROUPS > 0:
        group, begin, end = find_group(starts, tl.program_id(1), GROUPS, ROOM, ROWS)
        if group >= GROUPS:
            return
        address = tl.load(weight + group)
        if address == 0:
            return
        own = tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
        if IS_ORDERED:
            columns = tl.multiple_of(tl.load(columns + group).to(tl.pointer_type(tl.int64)), 16)
        places = begin + tl.arange(0, ROWS)
        r_mask = places < end
        r = tl.load(order + places, r_mask, 0).to(tl.int64)
        of_x = r // shared
    else:
        own = weight
        r = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        r_mask = r < rows
        of_x = r
    from_x = x + (of_x * x_stride)[None, :]
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    first = o + first_output
    if ARE_SHARED:
        split = tl.program_id(2)
        total = _add_tiles(
            total, split * tiles_of_split, tl.minimum(tiles, (split + 1) * tiles_of_split),
            from_x, r_mask[None, :], width, columns, own, high_at, factors_at, smalls_at, table, first, o_mask,
            all_outputs, L, IS_ORDERED,
        )  # fmt: skip
        out += split.to(tl.int64) * part_stride
    else:
        for split in range(splits):
            part = _add_tiles(
                tl.zeros([OUTPUTS, ROWS], tl.float32),
                split * tiles_of_split, tl.minimum(tiles, (split + 1) * tiles_of_split),
                from_x, r_mask[None, :], width, columns, own, high_at, factors_at, smalls_at, table, first, o_mask,
                all_outputs, L, IS_ORDERED,
            )  # fmt: skip
            total = total + part
        if HAS_BIAS:
            total = total + tl.load(bias + o, o_mask, 0.0)[:, None]
    to = out + (r * out_stride)[None, :] + o[:, None]
    tl.store(to, rounded(total, out.dtype.element_ty), o_mask[:, None] & r_mask[None, :])


@triton.jit
def _summed(sums, splits, part_stride, bias, o, mask, DTYPE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """What splits gave for outputs `o` of a row, as the product's own program adds and rounds it."""
    total = tl.zeros(o.shape, tl.float32)
    at = sums + o
    for _ in range(splits):
        total = total + tl.load(at, mask, 0.0)
        at += part_stride
    if HAS_BIAS:
        total = total + tl.load(bias + o, mask, 0.0)
    return rounded(total, DTYPE)


@triton.jit
def finish_kernel(
    sums, splits, part_stride, bias, out, out_stride, outputs, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, THRESHOLD: tl.constexpr, LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
):  # fmt: skip
    """`out` `[rows, outputs]` of what splits gave, `[splits, rows, outputs]` float32; one program a row.

    GATED: `[rows, outputs / 2]`, what the gate makes of the two halves.
    """
    DTYPE: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    given = outputs // 2 if GATED else outputs
    mask = o < given
    sums += row * outputs
    total = _summed(sums, splits, part_stride, bias, o, mask, DTYPE, HAS_BIAS)
    if GATED:
        up = _summed(sums, splits, part_stride, bias, o + given, mask, DTYPE, HAS_BIAS)
        gated = gate_of(total.to(tl.float32), up.to(tl.float32), ACTIVATION, THRESHOLD, LIMIT, UP_OFFSET)
        total = rounded(gated, DTYPE)
    tl.store(out + row * out_stride + o, total, mask)


@triton.jit
def rows_kernel(
    ids, first, count, weight, high_at, factors_at, smalls_at, table, first_output, outputs, all_outputs, out, width,
    scale, L: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of a weight with codes, `[count, width]`, each times `scale`; ids count from `first` on."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = place < count
    o = tl.load(ids + place, inside, 0) - first
    is_row = inside & (o >= 0) & (o < outputs)
    o = tl.where(is_row, o, 0) + first_output
    tile = tl.program_id(1)
    columns = tl.arange(0, L.piece)
    high = tl.zeros([1, 1], tl.uint8)
    if L.high != 0:
        high = high_bits(weight + high_at, tile, o, is_row, all_outputs, L)
    LOADS: tl.constexpr = L.loads
    SHIFTS: tl.constexpr = 8 // L.low
    for load in tl.static_range(LOADS):
        low = low_bits(weight, tile, load, o, is_row, all_outputs, L)
        for shift in tl.static_range(SHIFTS):
            code = codes_of(low, high, load, shift, L)
            begin = tile * L.tile + (shift * L.loads + load) * L.piece
            w = scaled(code, weight + factors_at, weight + smalls_at, table, begin, o, is_row, all_outputs, L)
            values = rounded(tl.where(is_row[:, None], w * scale, 0.0), out.dtype.element_ty)
            at = out + (place * width)[:, None] + (begin + columns)[None, :]
            tl.store(at, values, inside[:, None] & (begin + columns < width)[None, :])


@triton.jit
def weighted_sum_kernel(y, y_stride, weights, terms, out, width, IS_WEIGHTED: tl.constexpr, COLUMNS: tl.constexpr):
    """`out` `[rows, width]`, each row the sum of its terms in their order, in float32; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < width
    total = tl.zeros([COLUMNS], tl.float32)
    for term in range(terms):
        value = tl.load(y + (row * terms + term) * y_stride + columns, mask, 0.0).to(tl.float32)
        if IS_WEIGHTED:
            value = value * tl.load(weights + row * terms + term)
        total = total + value
    tl.store(out + row * width + columns, rounded(total, out.dtype.element_ty), mask)
