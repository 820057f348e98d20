"""What requests ask of logits, and are told of tokens, as kernels: see octavo.ops.logit_changes.

Tensors of requests lie where each was made: kernels find them by addresses in a table, a row for each row of logits
that is changed. One program alone changes a token's logit, and the vocabulary decides in which order sums are made.
"""

import triton
import triton.language as tl

from octavo.ops.triton.ordering import LOWEST, key_of

TOKENS = 4
"""Columns of a table of tokens: a row, where ids and values lie (0: none), how many there are."""
PAYS = 5
"""Columns of a table of penalties: a row, where counts and the prompt's tokens lie, which of the new tokens are its."""


@triton.jit
def mask_kernel(logits, stride, vocab, table, masks, mask_stride, IS_PACKED: tl.constexpr, COLUMNS: tl.constexpr):
    """-inf for tokens without a bit in a row of `masks`; not packed, for those with a true value where `table` says."""
    number = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < vocab
    if IS_PACKED:
        row = tl.load(table + number)
        byte = tl.load(masks + number.to(tl.int64) * mask_stride + column // 8, inside, 0).to(tl.int32)
        is_out = ((byte >> (column % 8)) & 1) == 0
    else:
        row = tl.load(table + 2 * number)
        forbidden = tl.load(table + 2 * number + 1).to(tl.pointer_type(tl.int8))
        is_out = tl.load(forbidden + column, inside, 0) != 0
    lowest = tl.full((COLUMNS,), float("-inf"), tl.float32)
    tl.store(logits + row * stride + column, lowest, inside & is_out)


@triton.jit
def tokens_kernel(logits, stride, table, IS_ADDED: tl.constexpr, COLUMNS: tl.constexpr):
    """Have the logits of listed tokens be -inf, or add values to them."""
    entry = table + tl.program_id(0) * 4
    row, count = tl.load(entry), tl.load(entry + 3)
    place = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = place < count
    ids = tl.load(tl.load(entry + 1).to(tl.pointer_type(tl.int64)) + place, inside, 0)
    at = logits + row * stride + ids
    if IS_ADDED:
        added = tl.load(tl.load(entry + 2).to(tl.pointer_type(tl.float32)) + place, inside, 0.0)
        tl.store(at, tl.load(at, inside, 0.0) + added, inside)
    else:
        tl.store(at, tl.full((COLUMNS,), float("-inf"), tl.float32), inside)


@triton.jit
def penalize_kernel(logits, stride, vocab, table, factors, new, COLUMNS: tl.constexpr):
    """Count new tokens in, and have those that came before pay."""
    number = tl.program_id(0)
    entry = table + number * 5
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < vocab
    to = tl.load(entry + 1).to(tl.pointer_type(tl.float32)) + column
    first, end = tl.load(entry + 3).to(tl.int32), tl.load(entry + 4).to(tl.int32)
    counts = tl.load(to, inside, 0.0)
    for place in range(first, end):
        counts += (column == tl.load(new + place)).to(tl.float32)
    if end > first:
        tl.store(to, counts, inside)
    in_prompt = tl.load(tl.load(entry + 2).to(tl.pointer_type(tl.int8)) + column, inside, 0) != 0
    repetition, frequency, presence = (
        tl.load(factors + number * 3),
        tl.load(factors + number * 3 + 1),
        tl.load(factors + number * 3 + 2),
    )
    at = logits + tl.load(entry) * stride + column
    value = tl.load(at, inside, 0.0)
    factor = tl.where((counts > 0) | in_prompt, repetition, 1.0)
    value = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
    value = value - frequency * counts
    value = value - tl.where(counts > 0, presence, 0.0)
    tl.store(at, value, inside)


@triton.jit
def log_softmax_kernel(logits, stride, out, rows, vocab, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    own_row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    row = tl.minimum(own_row, rows - 1).to(tl.int64)
    peak = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    for first in range(0, vocab, COLUMNS):
        mask = first + lane < vocab
        peak = tl.maximum(peak, tl.load(logits + row * stride + first + lane, mask, float("-inf")))
    most = tl.max(peak, axis=1)[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, vocab, COLUMNS):
        mask = first + lane < vocab
        value = tl.load(logits + row * stride + first + lane, mask, 0.0)
        total += tl.where(mask, tl.exp(value - most), 0.0)
    whole = tl.log(tl.sum(total, axis=1)[:, None])
    for first in range(0, vocab, COLUMNS):
        mask = first + lane < vocab
        value = tl.load(logits + row * stride + first + lane, mask, 0.0)
        tl.store(out + row * vocab + first + lane, (value - most) - whole, mask & (own_row < rows))


@triton.jit
def _next(scores, start, vocab, lane, key, place, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Key and place of each row's largest that comes behind `key` at `place`; of equals, the first."""
    best, found = tl.full((ROWS, 1), LOWEST, tl.int32), tl.zeros((ROWS, 1), tl.int32)
    for first in range(0, vocab, COLUMNS):
        column = first + lane
        own = key_of(tl.load(scores + start + column, column < vocab, 0.0))
        is_behind = ((own < key) | ((own == key) & (column > place))) & (column < vocab)
        own = tl.where(is_behind, own, LOWEST)
        peak = tl.max(own, axis=1)[:, None]
        there = tl.min(tl.where((own == peak) & is_behind, column, 0x7FFFFFFF), axis=1)[:, None]
        found = tl.where(peak > best, there, found)
        best = tl.maximum(best, peak)
    return best, found


@triton.jit
def likeliest_kernel(
    scores, stride, chosen, own, ranks, values, ids, rows, vocab, most, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The chosen token's score and rank, and the likeliest one after the other, a pass over the row for each."""
    own_row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    row, is_row = tl.minimum(own_row, rows - 1).to(tl.int64), own_row < rows
    start = row * stride
    token = tl.load(chosen + row)
    score = tl.load(scores + start + token, token < vocab, float("-inf"))
    above = tl.zeros((ROWS, COLUMNS), tl.int32)
    for first in range(0, vocab, COLUMNS):
        value = tl.load(scores + start + first + lane, first + lane < vocab, float("-inf"))
        above += (value > score).to(tl.int32)
    tl.store(own + row, score, is_row)
    tl.store(ranks + row, tl.sum(above, axis=1)[:, None].to(tl.int64) + 1, is_row)
    key, place = tl.full((ROWS, 1), 0x7FFFFFFF, tl.int32), tl.full((ROWS, 1), -1, tl.int32)
    for number in range(most):
        key, place = _next(scores, start, vocab, lane, key, place, ROWS, COLUMNS)
        # The key of a number is its bits again.
        value = tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)
        tl.store(values + row * most + number, value, is_row)
        tl.store(ids + row * most + number, place.to(tl.int64), is_row)
