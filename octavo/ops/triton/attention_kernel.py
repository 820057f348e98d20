"""Attention over keys in blocks or side by side, for prompts, chunks and decode alike: one kernel.

A program has a tile of queries: tokens of one run times the heads that share a key head, so that a key is loaded once
for all of them. It goes over keys in groups of KEYS at fixed positions, in ascending order, by an online softmax in
float32; every SPLIT keys, at positions fixed as well, make a softmax of their own, joined with those before.
So it makes no difference to any bit whether one program goes over all splits, or a program over each, whose results
`join_kernel` joins in the same order. Keys that a row does not see weigh zero, and leave all sums as they are.

The number of QUERIES and KEYS follows from the layer and the dtypes alone (`attention_launch`), never from the batch.
Kernels are not compiled anew for a batch's numbers, as Triton would for those that 16 divides.
"""

import triton
import triton.language as tl

from octavo.ops.triton.cached_numbers import held_numbers, key_rows, numbers_of, row_scales
from octavo.ops.triton.launching import dot, rounded

LOG2_E = tl.constexpr(1.4426950408889634)
ALL: tl.constexpr = tl.constexpr(0)
LAST: tl.constexpr = tl.constexpr(1)
CHUNK: tl.constexpr = tl.constexpr(2)
FULL: tl.constexpr = tl.constexpr(3)
"""What of the keys before it a token sees; in full attention all of its run's."""


@triton.jit
def _run_of(run_table, tile_table, window, TOKENS: tl.constexpr, SIGHT: tl.constexpr):
    """A program's queries: first row, first position, how many; its run; its keys from the first to the end."""
    tile = tl.program_id(0)
    run = run_table + tl.load(tile_table + 2 * tile) * 6
    offset = tl.load(tile_table + 2 * tile + 1)
    first_row, table_row = tl.load(run), tl.load(run + 3)
    run_tokens, run_start = tl.load(run + 1).to(tl.int32), tl.load(run + 2).to(tl.int32)
    sees_all, first_key = tl.load(run + 4).to(tl.int32), tl.load(run + 5).to(tl.int32)
    start = run_start + offset
    count = tl.minimum(run_tokens - offset, TOKENS)
    run_end = run_start + run_tokens
    if SIGHT == FULL:  # sees_all is how many keys there are
        first, end = first_key, sees_all
    else:
        if SIGHT == LAST:
            first = tl.maximum(start - window + 1, 0)
        elif SIGHT == CHUNK:
            first = start // window * window
        else:
            first = start * 0
        first = tl.maximum(tl.where(sees_all != 0, tl.minimum(first, run_start), first), first_key)
        end = tl.where(sees_all != 0, run_end, start + count)
    return first_row + offset, start, count, run_start, run_end, table_row, sees_all, first_key, first, end


@triton.jit
def _seen(
    positions,
    valid,
    query_positions,
    run_start,
    run_end,
    sees_all,
    first_key,
    window,
    SIGHT: tl.constexpr,
):
    """`[queries, keys]`: which keys each query sees."""
    key, query = positions[None, :], query_positions[:, None]
    if SIGHT == FULL:
        seen = (key >= first_key) & (query == query)
    else:
        seen = key <= query
        if SIGHT == LAST:
            seen &= key > query - window
        elif SIGHT == CHUNK:
            seen &= key >= query // window * window
        both = (key >= run_start) & (key < run_end) & (sees_all != 0)
        seen = (seen | both) & (key >= first_key)
    return seen & valid[None, :]


@triton.jit
def _sparse(
    positions,
    query_positions,
    heads,
    SIZE: tl.constexpr,
    LOCAL: tl.constexpr,
    STRIDE: tl.constexpr,
    STEP: tl.constexpr,
    FIRST: tl.constexpr,
):
    """`[queries, keys]`: which keys a block-sparse layer's heads see."""
    key_block = positions // SIZE
    near = (query_positions // SIZE)[:, None] - key_block[None, :] < LOCAL
    return near | ((key_block[None, :] + (heads + FIRST)[:, None] * STEP + 1) % STRIDE == 0)


@triton.jit
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
def _joined(peak, total, own_peak, own_total):
    """Two softmaxes as one, the second's keys behind the first's; and the factors of both's values."""
    highest = tl.maximum(peak, own_peak)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    before, after = tl.exp2(peak - level), tl.exp2(own_peak - level)
    return highest, total * before + own_total * after, before[:, None], after[:, None]


@triton.jit
def _whole(peak, total, sinks, heads, is_row, HAS_SINKS: tl.constexpr):
    """`[queries, 1]`: what sums of values are divided by."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=is_row, other=0.0) * LOG2_E
        total += tl.exp2(sink - peak)
    return total[:, None]


@triton.jit
def _put(pointer, rows, x, is_row, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """`x` `[queries, WIDTH]` to columns from FIRST on of rows of DIM numbers."""
    columns = FIRST + tl.arange(0, WIDTH)
    mask = is_row[:, None] & (columns < DIM)[None, :]
    place = pointer + rows[:, None] * DIM + columns[None, :]
    tl.store(place, rounded(x, pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_splits", "part_rows"])
def attend_kernel(
    query,
    keys,
    values,
    out,
    part_mixed,
    part_sums,
    run_table,
    tile_table,
    block_table,
    table_width,
    key_lists,
    list_size,
    slopes,
    distances,
    num_distances,
    origin,
    query_vectors,
    key_vectors,
    vector_numbers,
    num_vectors,
    sinks,
    scale,
    softcap,
    window,
    num_splits,
    part_rows,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_REST: tl.constexpr,
    ROW: tl.constexpr,
    VALUE_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    SIGHT: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_INT4: tl.constexpr,
    IS_SHARED: tl.constexpr,
    HAS_LISTS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    HAS_DISTANCES: tl.constexpr,
    HAS_QUERY_VECTORS: tl.constexpr,
    HAS_KEY_VECTORS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPARSE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A tile of queries over all splits, or over one, of which what it has goes to `part_*` where `num_splits`.

    Program ids: the tile of `tile_table`; the key head and which of the heads that share it; the split.
    """
    first_row, start, count, run_start, run_end, table_row, sees_all, first_key, first, end = _run_of(
        run_table, tile_table, window, QUERIES // TILE_HEADS, SIGHT
    )
    if HAS_LISTS:
        first, end = first * 0, end * 0 + list_size
    first_split, end_split = first // SPLIT, tl.cdiv(end, SPLIT)
    if num_splits > 0:
        first_split = tl.maximum(first_split, tl.program_id(2))
        end_split = tl.minimum(end_split, tl.program_id(2) + 1)
    if count <= 0 or first_split >= end_split:
        return

    head_tiles: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    kv_head, places = tl.program_id(1) // head_tiles, tl.arange(0, QUERIES)
    of_group = tl.program_id(1) % head_tiles * TILE_HEADS + places % TILE_HEADS
    tokens, heads = places // TILE_HEADS, kv_head * GROUP + of_group
    is_row = (tokens < count) & (of_group < GROUP)
    out_rows = (first_row + tokens) * (KV_HEADS * GROUP) + heads
    query_positions = start + tokens
    asked = rounded(numbers_of(query, out_rows, is_row, 0, WIDTH, DIM, DIM), COMPUTE)
    if REST > 0:
        asked_rest = rounded(numbers_of(query, out_rows, is_row, WIDTH, REST, DIM, DIM), COMPUTE)

    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, VALUE_WIDTH], tl.float32)
    if VALUE_REST > 0:
        mixed_rest = tl.zeros([QUERIES, VALUE_REST], tl.float32)
    for split in range(first_split, end_split):
        own_peak = tl.full([QUERIES], float("-inf"), tl.float32)
        own_total = tl.zeros([QUERIES], tl.float32)
        own_mixed = tl.zeros([QUERIES, VALUE_WIDTH], tl.float32)
        if VALUE_REST > 0:
            own_rest = tl.zeros([QUERIES, VALUE_REST], tl.float32)
        begin = tl.maximum(split * SPLIT, first // KEYS * KEYS)
        for at in range(begin, tl.minimum((split + 1) * SPLIT, end), KEYS):
            positions = at + tl.arange(0, KEYS)
            valid = positions < end
            if HAS_LISTS:
                positions = tl.load(key_lists + first_row * list_size + positions, mask=valid, other=-1)
                valid = positions >= 0
            rows = key_rows(positions, valid, block_table, table_width, table_row, kv_head, BLOCK, KV_HEADS)
            key = held_numbers(keys, rows, valid, 0, WIDTH, DIM, ROW, IS_INT4, COMPUTE)
            scores = dot(asked, tl.trans(key), tl.zeros([QUERIES, KEYS], tl.float32))
            if REST > 0:
                rest = held_numbers(keys, rows, valid, WIDTH, REST, DIM, ROW, IS_INT4, COMPUTE)
                scores = dot(asked_rest, tl.trans(rest), scores)
            if IS_INT8:
                key_scales = row_scales(keys, rows, valid, DIM, ROW)
                scores *= key_scales[None, :]
            distance = positions[None, :] - query_positions[:, None]
            if HAS_QUERY_VECTORS or HAS_KEY_VECTORS:
                number = tl.load(vector_numbers + tl.minimum(tl.maximum(distance + origin, 0), num_distances - 1))
                if HAS_QUERY_VECTORS:
                    place = query_vectors + out_rows[:, None] * num_vectors + number
                    scores += tl.load(place, mask=is_row[:, None], other=0.0)
                if HAS_KEY_VECTORS:
                    own_rows = (table_row + positions)[None, :] * (KV_HEADS * GROUP) + heads[:, None]
                    place = key_vectors + own_rows * num_vectors + number
                    scores += tl.load(place, mask=is_row[:, None] & valid[None, :], other=0.0)
            scores *= scale
            if HAS_SOFTCAP:
                scores = _tanh(scores / softcap) * softcap
            if HAS_SLOPES:
                scores += tl.load(slopes + heads, mask=is_row, other=0.0)[:, None] * distance.to(tl.float32)
            if HAS_DISTANCES:
                place = tl.minimum(tl.maximum(distance + origin, 0), num_distances - 1)
                place = distances + heads[:, None] * num_distances + place
                scores += tl.load(place, mask=is_row[:, None], other=0.0)
            seen = _seen(positions, valid, query_positions, run_start, run_end, sees_all, first_key, window, SIGHT)
            if SPARSE is not None:
                seen &= _sparse(
                    positions, query_positions, heads, SPARSE[0], SPARSE[1], SPARSE[2], SPARSE[3], SPARSE[4]
                )
            scores = tl.where(seen, scores * LOG2_E, float("-inf"))

            highest = tl.maximum(own_peak, tl.max(scores, 1))
            level = tl.where(highest == float("-inf"), 0.0, highest)
            weights, before = tl.exp2(scores - level[:, None]), tl.exp2(own_peak - level)
            own_peak, own_total = highest, own_total * before + tl.sum(weights, 1)
            if IS_INT8:
                weights *= (key_scales if IS_SHARED else row_scales(values, rows, valid, VALUE_DIM, VALUE_ROW))[None, :]
            weights = rounded(weights, COMPUTE)
            if IS_SHARED:
                value = key
            else:
                value = held_numbers(values, rows, valid, 0, VALUE_WIDTH, VALUE_DIM, VALUE_ROW, IS_INT4, COMPUTE)
            own_mixed = dot(weights, value, own_mixed * before[:, None])
            if VALUE_REST > 0:
                if IS_SHARED:
                    value = rest
                else:
                    value = held_numbers(
                        values, rows, valid, VALUE_WIDTH, VALUE_REST, VALUE_DIM, VALUE_ROW, IS_INT4, COMPUTE
                    )
                own_rest = dot(weights, value, own_rest * before[:, None])
        peak, total, keeps, adds = _joined(peak, total, own_peak, own_total)
        mixed = mixed * keeps + own_mixed * adds
        if VALUE_REST > 0:
            mixed_rest = mixed_rest * keeps + own_rest * adds

    if num_splits > 0:
        part_at = tl.program_id(2) * part_rows + out_rows
        tl.store(part_sums + part_at * 2, peak, mask=is_row)
        tl.store(part_sums + part_at * 2 + 1, total, mask=is_row)
        _put(part_mixed, part_at, mixed, is_row, 0, VALUE_WIDTH, VALUE_DIM)
        if VALUE_REST > 0:
            _put(part_mixed, part_at, mixed_rest, is_row, VALUE_WIDTH, VALUE_REST, VALUE_DIM)
    else:
        whole = _whole(peak, total, sinks, heads, is_row, HAS_SINKS)
        _put(out, out_rows, mixed / whole, is_row, 0, VALUE_WIDTH, VALUE_DIM)
        if VALUE_REST > 0:
            _put(out, out_rows, mixed_rest / whole, is_row, VALUE_WIDTH, VALUE_REST, VALUE_DIM)


@triton.jit(do_not_specialize=["part_rows"])
def join_kernel(
    part_mixed,
    part_sums,
    out,
    run_table,
    tile_table,
    list_size,
    sinks,
    window,
    part_rows,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_REST: tl.constexpr,
    SIGHT: tl.constexpr,
    HAS_LISTS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """What the splits of `attend_kernel` have given, joined in their order."""
    first_row, _, count, _, _, _, _, _, first, end = _run_of(
        run_table, tile_table, window, QUERIES // TILE_HEADS, SIGHT
    )
    if HAS_LISTS:
        first, end = first * 0, end * 0 + list_size
    if count <= 0 or first >= end:
        return
    head_tiles: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    kv_head, places = tl.program_id(1) // head_tiles, tl.arange(0, QUERIES)
    of_group = tl.program_id(1) % head_tiles * TILE_HEADS + places % TILE_HEADS
    tokens, heads = places // TILE_HEADS, kv_head * GROUP + of_group
    is_row = (tokens < count) & (of_group < GROUP)
    out_rows = (first_row + tokens) * (KV_HEADS * GROUP) + heads
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, VALUE_WIDTH], tl.float32)
    if VALUE_REST > 0:
        mixed_rest = tl.zeros([QUERIES, VALUE_REST], tl.float32)
    for split in range(first // SPLIT, tl.cdiv(end, SPLIT)):
        part_at = split * part_rows + out_rows
        own_peak = tl.load(part_sums + part_at * 2, mask=is_row, other=0.0)
        own_total = tl.load(part_sums + part_at * 2 + 1, mask=is_row, other=0.0)
        peak, total, keeps, adds = _joined(peak, total, own_peak, own_total)
        own = numbers_of(part_mixed, part_at, is_row, 0, VALUE_WIDTH, VALUE_DIM, VALUE_DIM)
        mixed = mixed * keeps + own * adds
        if VALUE_REST > 0:
            own = numbers_of(part_mixed, part_at, is_row, VALUE_WIDTH, VALUE_REST, VALUE_DIM, VALUE_DIM)
            mixed_rest = mixed_rest * keeps + own * adds
    whole = _whole(peak, total, sinks, heads, is_row, HAS_SINKS)
    _put(out, out_rows, mixed / whole, is_row, 0, VALUE_WIDTH, VALUE_DIM)
    if VALUE_REST > 0:
        _put(out, out_rows, mixed_rest / whole, is_row, VALUE_WIDTH, VALUE_REST, VALUE_DIM)
