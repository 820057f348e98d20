"""Scores of an indexer's keys: see octavo.ops.backend.Backend.select_keys."""

import triton
import triton.language as tl

from octavo.ops.triton.attention_kernel import _run_of, _seen
from octavo.ops.triton.cached_numbers import entry_rows, held_numbers, key_rows, numbers_of, row_scales
from octavo.ops.triton.launching import dot, rounded

SPLIT = tl.constexpr(512)
"""Keys of a program."""


@triton.jit(do_not_specialize=["width"])
def key_scores_kernel(
    query,
    weights,
    keys,
    scores,
    width,
    run_table,
    tile_table,
    block_table,
    table_width,
    window,
    HEADS: tl.constexpr,
    HEAD_ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    REST: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    RATIO: tl.constexpr,
    SIGHT: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_INT8: tl.constexpr,
    IS_INT4: tl.constexpr,
):
    """Scores of one token's keys, in a row of `scores` `[tiles, width]`; what it does not see stays as it is.

    Program ids: the tile, of one token; the split. RATIO is how many tokens a key is of.
    """
    first_row, start, count, run_start, run_end, table_row, sees_all, first_key, first, end = _run_of(
        run_table, tile_table, window, 1, SIGHT
    )
    if RATIO > 1:
        first, end = first * 0, (start + 1) // RATIO
    begin = tl.maximum(tl.program_id(1) * SPLIT, first // KEYS * KEYS)
    stop = tl.minimum((tl.program_id(1) + 1) * SPLIT, end)
    if count <= 0:
        return
    heads = tl.arange(0, HEAD_ROWS)
    is_head, rows = heads < HEADS, first_row * HEADS + heads
    asked = rounded(numbers_of(query, rows, is_head, 0, WIDTH, DIM, DIM), COMPUTE)
    if REST > 0:
        asked_rest = rounded(numbers_of(query, rows, is_head, WIDTH, REST, DIM, DIM), COMPUTE)
    of_heads = tl.load(weights + rows, mask=is_head, other=0.0)
    for at in range(begin, stop, KEYS):
        numbers = at + tl.arange(0, KEYS)
        valid = numbers < end
        if RATIO == 1:
            held_rows = key_rows(numbers, valid, block_table, table_width, table_row, 0, BLOCK, 1)
            here = start + tl.arange(0, 1)
            seen = _seen(numbers, valid, here, run_start, run_end, sees_all, first_key, window, SIGHT)
            valid = tl.max(seen.to(tl.int32), 0) > 0
        else:
            held_rows = entry_rows(numbers, valid, block_table, table_width, table_row, BLOCK, RATIO)
        held = held_numbers(keys, held_rows, valid, 0, WIDTH, DIM, ROW, IS_INT4, COMPUTE)
        products = dot(asked, tl.trans(held), tl.zeros([HEAD_ROWS, KEYS], tl.float32))
        if REST > 0:
            held = held_numbers(keys, held_rows, valid, WIDTH, REST, DIM, ROW, IS_INT4, COMPUTE)
            products = dot(asked_rest, tl.trans(held), products)
        if IS_INT8:
            products *= row_scales(keys, held_rows, valid, DIM, ROW)[None, :]
        total = tl.sum(tl.maximum(products, 0.0) * of_heads[:, None], 0)
        tl.store(scores + tl.program_id(0).to(tl.int64) * width + numbers, total, mask=valid)
