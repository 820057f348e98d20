"""Choosing tokens, a program a row: see octavo.ops.torch.sampling for what is computed.

The vocabulary is not sorted. What the likeliest weigh is found by halving the range of weights, whose bits as whole
numbers are in their order: thirty passes over a row find where top_k or top_p ends, and how many of the equals there
stay. Sums are float64, in an order that the vocabulary's size alone decides.
"""

import triton
import triton.language as tl

from octavo.ops.triton.ordering import LOWEST, first_of, key_of

HEAT = tl.constexpr(0)
FLOOR = tl.constexpr(1)
TOP_K = tl.constexpr(2)
TOP_P = tl.constexpr(3)
DRAW = tl.constexpr(4)
IS_DRAWN = tl.constexpr(5)
FIELDS = tl.constexpr(6)
"""Columns of `by`: what logits are divided by; below which of their distances from the peak tokens are left out."""

BEYOND = tl.constexpr(0x3F800001)
"""One more than the bits of the largest weight, which is 1."""
HALVINGS = tl.constexpr(30)
MANY = tl.constexpr(1 << 30)


@triton.jit
def _field(by, row, FIELD: tl.constexpr):
    return tl.load(by + row * FIELDS + FIELD)


@triton.jit
def _peak(logits, start, vocab, lane, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Key and place of each row's largest; of equals, the first."""
    best, place = tl.full((ROWS, 1), LOWEST, tl.int32), tl.zeros((ROWS, 1), tl.int32)
    for first in range(0, vocab, COLUMNS):
        value = tl.load(logits + start + first + lane, mask=first + lane < vocab, other=0.0)
        keys = tl.where(first + lane < vocab, key_of(value), LOWEST)
        own, peak = first_of(keys, lane), tl.max(keys, axis=1)[:, None]
        place = tl.where(peak > best, first + own, place)
        best = tl.maximum(best, peak)
    return best, place


@triton.jit
def _weights(logits, start, column, vocab, peak, heat, floor):
    """Of some columns, relative to the likeliest; 0 where min_p leaves out, and beyond the vocabulary."""
    value = tl.load(logits + start + column, mask=column < vocab, other=float("-inf"))
    nats = tl.div_rn(value, heat) - tl.div_rn(peak, heat)
    return tl.where((nats < floor) | (column >= vocab), 0.0, tl.exp(nats))


@triton.jit
def _reaching(logits, start, vocab, lane, peak, heat, floor, least, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """How many tokens there are whose weights' bits are `least` `[rows, 1]` or more, and what they weigh."""
    count, mass = tl.zeros((ROWS, COLUMNS), tl.int32), tl.zeros((ROWS, COLUMNS), tl.float64)
    for first in range(0, vocab, COLUMNS):
        weight = _weights(logits, start, first + lane, vocab, peak, heat, floor)
        reaches = (weight.to(tl.int32, bitcast=True) >= least) & (first + lane < vocab)
        count += reaches.to(tl.int32)
        mass += tl.where(reaches, weight.to(tl.float64), 0.0)
    return tl.sum(count, axis=1)[:, None], tl.sum(mass, axis=1)[:, None]


@triton.jit
def _end_of_top_k(logits, start, vocab, lane, peak, heat, floor, top_k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Bits of the least weight that stays, how many of its equals stay, and what all that stay weigh."""
    low, high = tl.zeros((ROWS, 1), tl.int32), tl.full((ROWS, 1), BEYOND, tl.int32)
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        count, _mass = _reaching(logits, start, vocab, lane, peak, heat, floor, middle, ROWS, COLUMNS)
        low, high = tl.where(count >= top_k, middle, low), tl.where(count >= top_k, high, middle)
    above, mass = _reaching(logits, start, vocab, lane, peak, heat, floor, low + 1, ROWS, COLUMNS)
    equals = top_k - above
    return low, equals, mass + equals.to(tl.float64) * low.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _end_of_top_p(
    logits,
    start,
    vocab,
    lane,
    peak,
    heat,
    floor,
    border,
    equals,
    target,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """As `_end_of_top_k`, of the likeliest that weigh `target`, which what ends at `border` and `equals` does."""
    low, high = border, tl.full((ROWS, 1), BEYOND, tl.int32)
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        _count, mass = _reaching(logits, start, vocab, lane, peak, heat, floor, middle, ROWS, COLUMNS)
        reaches = (mass >= target) | (middle <= low)
        low, high = tl.where(reaches, middle, low), tl.where(reaches, high, middle)
    _count, before = _reaching(logits, start, vocab, lane, peak, heat, floor, low + 1, ROWS, COLUMNS)
    each = low.to(tl.float32, bitcast=True).to(tl.float64)
    wanted = tl.ceil((target - before) / tl.where(each > 0, each, 1.0))
    wanted = tl.where(each > 0, tl.minimum(tl.maximum(wanted, 1.0), MANY), MANY).to(tl.int32)
    return low, tl.where(low == border, tl.minimum(wanted, equals), wanted)


@triton.jit
def _stays(weight, border, equals, before):
    """Which weights stay, and how many equals there are up to here."""
    bits = weight.to(tl.int32, bitcast=True)
    is_equal = (bits == border).to(tl.int32)
    rank = before + tl.cumsum(is_equal, axis=1) - is_equal
    stays = (bits > border) | ((bits == border) & (rank < equals))
    return stays, before + tl.sum(is_equal, axis=1)[:, None]


@triton.jit
def _left(weight, border, equals, before, IS_CUT: tl.constexpr):
    """The weights that stay, in float64, and how many equals there are up to here."""
    if IS_CUT:
        stays, before = _stays(weight, border, equals, before)
        weight = tl.where(stays, weight, 0.0)
    return weight.to(tl.float64), before


@triton.jit
def _cut(
    logits,
    by,
    row,
    start,
    vocab,
    lane,
    peak,
    heat,
    floor,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Where top_k and top_p end: the bits of the least weight that stays, and how many of its equals stay."""
    border, equals = tl.zeros((ROWS, 1), tl.int32), tl.full((ROWS, 1), MANY, tl.int32)
    if HAS_TOP_K or HAS_TOP_P:
        _count, mass = _reaching(logits, start, vocab, lane, peak, heat, floor, border, ROWS, COLUMNS)
    if HAS_TOP_K:
        top_k = _field(by, row, TOP_K).to(tl.int32)
        least, stay, weigh = _end_of_top_k(logits, start, vocab, lane, peak, heat, floor, top_k, ROWS, COLUMNS)
        border, equals = tl.where(top_k < vocab, least, border), tl.where(top_k < vocab, stay, equals)
        mass = tl.where(top_k < vocab, weigh, mass)
    if HAS_TOP_P:
        top_p = _field(by, row, TOP_P)
        least, stay = _end_of_top_p(
            logits, start, vocab, lane, peak, heat, floor, border, equals, top_p * mass, ROWS, COLUMNS
        )
        border, equals = tl.where(top_p < 1, least, border), tl.where(top_p < 1, stay, equals)
    return border, equals


@triton.jit
def sample_kernel(
    logits,
    by,
    tokens,
    rows,
    vocab,
    stride,
    NOT_FINITE: tl.constexpr,
    ANY_DRAWN: tl.constexpr,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    own_row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    row = tl.minimum(own_row, rows - 1)
    start = row.to(tl.int64) * stride
    best, token = _peak(logits, start, vocab, lane, ROWS, COLUMNS)
    # The key of a number is its bits again.
    peak = tl.where(best < 0, best ^ 0x7FFFFFFF, best).to(tl.float32, bitcast=True)
    if ANY_DRAWN:
        heat, floor = _field(by, row, HEAT).to(tl.float32), _field(by, row, FLOOR).to(tl.float32)
        border, equals = _cut(
            logits, by, row, start, vocab, lane, peak, heat, floor, HAS_TOP_K, HAS_TOP_P, ROWS, COLUMNS
        )
        IS_CUT: tl.constexpr = HAS_TOP_K or HAS_TOP_P
        total, seen = tl.zeros((ROWS, 1), tl.float64), tl.zeros((ROWS, 1), tl.int32)
        for first in range(0, vocab, COLUMNS):
            weight = _weights(logits, start, first + lane, vocab, peak, heat, floor)
            left, seen = _left(weight, border, equals, seen, IS_CUT)
            total += tl.sum(left, axis=1)[:, None]
        target, before = _field(by, row, DRAW) * total, tl.zeros((ROWS, 1), tl.float64)
        drawn, seen = token, tl.zeros((ROWS, 1), tl.int32)
        for first in range(0, vocab, COLUMNS):
            weight = _weights(logits, start, first + lane, vocab, peak, heat, floor)
            left, seen = _left(weight, border, equals, seen, IS_CUT)
            ends, own = tl.cumsum(left, axis=1), tl.sum(left, axis=1)[:, None]
            place = tl.sum((before + ends <= target).to(tl.int32), axis=1)[:, None]
            # Rounding may leave a draw at the very end: it is the last token that has weight.
            last = tl.sum((ends < tl.max(ends, axis=1)[:, None]).to(tl.int32), axis=1)[:, None]
            is_here = (before <= target) & (own > 0)
            drawn = tl.where(is_here, first + tl.minimum(place, last), drawn)
            before += own
        # A row in which nothing is possible has no distribution: its first token stands for it.
        is_drawn = (_field(by, row, IS_DRAWN) != 0) & (peak != float("-inf"))
        token = tl.where(is_drawn, drawn, token)
    token = tl.where((peak != peak) | (peak == float("inf")), NOT_FINITE, token)
    tl.store(tokens + own_row, token.to(tl.int64), mask=own_row < rows)


@triton.jit
def left_kernel(
    logits,
    by,
    chosen,
    left,
    rows,
    vocab,
    stride,
    HAS_TOP_K: tl.constexpr,
    HAS_TOP_P: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Logits as tokens are drawn by them: divided by the temperature, -inf for what is left out, never `chosen`."""
    own_row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    row = tl.minimum(own_row, rows - 1)
    start = row.to(tl.int64) * stride
    best, _token = _peak(logits, start, vocab, lane, ROWS, COLUMNS)
    peak = tl.where(best < 0, best ^ 0x7FFFFFFF, best).to(tl.float32, bitcast=True)
    heat, floor = _field(by, row, HEAT).to(tl.float32), _field(by, row, FLOOR).to(tl.float32)
    border, equals = _cut(logits, by, row, start, vocab, lane, peak, heat, floor, HAS_TOP_K, HAS_TOP_P, ROWS, COLUMNS)
    seen, token = tl.zeros((ROWS, 1), tl.int32), tl.load(chosen + row)
    for first in range(0, vocab, COLUMNS):
        column = first + lane
        value = tl.load(logits + start + column, mask=column < vocab, other=0.0)
        is_out = tl.div_rn(value, heat) - tl.div_rn(peak, heat) < floor
        if HAS_TOP_K or HAS_TOP_P:
            weight = _weights(logits, start, column, vocab, peak, heat, floor)
            stays, seen = _stays(weight, border, equals, seen)
            is_out = is_out | (stays == 0)
        value = tl.where(is_out & (column != token), float("-inf"), tl.div_rn(value, heat))
        tl.store(left + row.to(tl.int64) * vocab + column, value, (column < vocab) & (own_row < rows))
