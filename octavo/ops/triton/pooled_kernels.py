"""Keys that are pooled of several tokens each: see octavo.ops.pooled_keys.

A program has one token, and what it computes depends on that token alone: its window's keys are taken KEYS at a time
from multiples of it on, then the entries that it sees, from its list's first on, all in one softmax.
"""

import triton
import triton.language as tl

from octavo.ops.triton.attention_kernel import LOG2_E, _put, _run_of, _whole
from octavo.ops.triton.cached_numbers import entry_rows, held_numbers, key_rows, numbers_of, row_scales
from octavo.ops.triton.head_kernels import _store
from octavo.ops.triton.launching import dot, rounded

NO_ENTRIES: tl.constexpr = tl.constexpr(0)
ALL_ENTRIES: tl.constexpr = tl.constexpr(1)
LISTED_ENTRIES: tl.constexpr = tl.constexpr(2)
"""Which entries a token sees: of those that are complete, all, or those of its list."""


@triton.jit
def _token(run_table, tile_table):
    """A program's token: its row, its position, whether there is one, and its sequence's row of the block table."""
    tile = tl.program_id(0)
    run = run_table + tl.load(tile_table + 2 * tile) * 6
    offset = tl.load(tile_table + 2 * tile + 1)
    position = tl.load(run + 2).to(tl.int32) + offset
    return tl.load(run) + offset, position, offset < tl.load(run + 1), tl.load(run + 3)


@triton.jit
def pool_kernel(
    cache,
    bias,
    out,
    run_table,
    tile_table,
    block_table,
    table_width,
    DIM: tl.constexpr,
    GIVEN: tl.constexpr,
    RATIO: tl.constexpr,
    REACH: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The entry that a token completes, before norms. Program ids: the token; which columns of the entry.

    A row of the cache is GIVEN values and as many gates, of which the last DIM of either are for the token's own group.
    """
    row, position, is_token, table_row = _token(run_table, tile_table)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < DIM
    if is_token & ((position + 1) % RATIO == 0):
        first = position + 1 - REACH
        peak = tl.full([COLUMNS], float("-inf"), tl.float32)
        total, mean = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
        for place in range(2 * REACH):  # once for the peak, once for the mean
            number = place % REACH
            at = tl.maximum(first + number, 0)
            block = tl.load(block_table + table_row * table_width + at // BLOCK)
            half = tl.where(number >= REACH - RATIO, GIVEN - DIM, 0)
            given = cache + (block * BLOCK + at % BLOCK) * (2 * GIVEN) + half + column
            gate = tl.load(given + GIVEN, is_column, 0.0)
            gate += tl.load(bias + number % RATIO * GIVEN + half + column, is_column, 0.0)
            gate = tl.where(first + number >= 0, gate, float("-inf"))
            if place < REACH:
                peak = tl.maximum(peak, gate)
            else:
                weight = tl.exp(gate - peak)
                total += weight
                mean += weight * tl.where(weight > 0, tl.load(given, is_column, 0.0), 0.0)
        tl.store(out + row * DIM + column, tl.div_rn(mean, total), is_column)


@triton.jit
def store_entries_kernel(
    x,
    row_stride,
    cache,
    run_table,
    tile_table,
    block_table,
    table_width,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A token's row to the place of the entry that it completes, where it does."""
    row, position, is_token, table_row = _token(run_table, tile_table)
    if is_token & ((position + 1) % RATIO == 0):
        columns, one = tl.arange(0, WIDTH), tl.arange(0, 1)
        ROWS_OF_BLOCK: tl.constexpr = (BLOCK + RATIO - 1) // RATIO
        own = entry_rows(one + position // RATIO, one == 0, block_table, table_width, table_row, BLOCK, RATIO)
        given = tl.load(x + row * row_stride + columns, columns < DIM, 0.0).to(tl.float32)
        _store(cache, given[None, :], own, one == 0, 0, columns, 1, DIM, ROWS_OF_BLOCK)


@triton.jit
def _taken(
    asked,
    asked_rest,
    keys,
    rows,
    valid,
    peak,
    total,
    mixed,
    mixed_rest,
    scale,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_INT4: tl.constexpr,
):
    """An online softmax after some more keys, which are values as well."""
    key = held_numbers(keys, rows, valid, 0, WIDTH, DIM, ROW, IS_INT4, COMPUTE)
    scores = dot(asked, tl.trans(key), tl.zeros([asked.shape[0], key.shape[0]], tl.float32))
    if REST > 0:
        rest = held_numbers(keys, rows, valid, WIDTH, REST, DIM, ROW, IS_INT4, COMPUTE)
        scores = dot(asked_rest, tl.trans(rest), scores)
    if IS_INT8:
        scales = row_scales(keys, rows, valid, DIM, ROW)
        scores *= scales[None, :]
    scores = tl.where(valid[None, :], scores * scale * LOG2_E, float("-inf"))
    highest = tl.maximum(peak, tl.max(scores, 1))
    level = tl.where(highest == float("-inf"), 0.0, highest)
    weights, before = tl.exp2(scores - level[:, None]), tl.exp2(peak - level)
    total = total * before + tl.sum(weights, 1)
    if IS_INT8:
        weights *= scales[None, :]
    weights = rounded(weights, COMPUTE)
    mixed = dot(weights, key, mixed * before[:, None])
    if REST > 0:
        mixed_rest = dot(weights, rest, mixed_rest * before[:, None])
    return highest, total, mixed, mixed_rest


@triton.jit(do_not_specialize=["list_size"])
def attend_pooled_kernel(
    query,
    keys,
    entries,
    out,
    run_table,
    tile_table,
    block_table,
    table_width,
    entry_table,
    entry_width,
    lists,
    list_size,
    sinks,
    scale,
    window,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    RATIO: tl.constexpr,
    SIGHT: tl.constexpr,
    ENTRIES: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_INT4: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """A token's attention, of some of its heads. Program ids: the token; which heads."""
    row, position, count, _start, _end, table_row, _all, _first_key, first, end = _run_of(
        run_table, tile_table, window, 1, SIGHT
    )
    if count <= 0:
        return
    heads = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    is_head, out_rows = heads < HEADS, row * HEADS + heads
    asked = rounded(numbers_of(query, out_rows, is_head, 0, WIDTH, DIM, DIM), COMPUTE)
    mixed = tl.zeros([QUERIES, WIDTH], tl.float32)
    asked_rest, mixed_rest = asked, mixed
    if REST > 0:
        asked_rest = rounded(numbers_of(query, out_rows, is_head, WIDTH, REST, DIM, DIM), COMPUTE)
        mixed_rest = tl.zeros([QUERIES, REST], tl.float32)
    peak, total = tl.full([QUERIES], float("-inf"), tl.float32), tl.zeros([QUERIES], tl.float32)
    for at in range(first // KEYS * KEYS, end, KEYS):
        positions = at + tl.arange(0, KEYS)
        valid = (positions >= first) & (positions < end)
        rows = key_rows(positions, valid, block_table, table_width, table_row, 0, BLOCK, 1)
        peak, total, mixed, mixed_rest = _taken(
            asked, asked_rest, keys, rows, valid, peak, total, mixed, mixed_rest, scale,
            WIDTH, REST, DIM, ROW, COMPUTE, IS_INT8, IS_INT4,
        )  # fmt: skip
    if ENTRIES != NO_ENTRIES:
        complete = (position + 1) // RATIO
        if ENTRIES == LISTED_ENTRIES:
            complete = complete * 0 + list_size
        for at in range(0, complete, KEYS):
            numbers = at + tl.arange(0, KEYS)
            valid = numbers < complete
            if ENTRIES == LISTED_ENTRIES:
                numbers = tl.load(lists + row * list_size + numbers, valid, -1)
                valid = numbers >= 0
            rows = entry_rows(numbers, valid, entry_table, entry_width, table_row, BLOCK, RATIO)
            peak, total, mixed, mixed_rest = _taken(
                asked, asked_rest, entries, rows, valid, peak, total, mixed, mixed_rest, scale,
                WIDTH, REST, DIM, ROW, COMPUTE, IS_INT8, IS_INT4,
            )  # fmt: skip
    whole = _whole(peak, total, sinks, heads, is_head, HAS_SINKS)
    _put(out, out_rows, mixed / whole, is_head, 0, WIDTH, DIM)
    if REST > 0:
        _put(out, out_rows, mixed_rest / whole, is_head, WIDTH, REST, DIM)
