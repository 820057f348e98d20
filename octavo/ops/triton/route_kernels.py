"""Which experts a row goes to: one program a row. See octavo.ops.torch.routing for what is computed.

A row's experts lie in lanes group by group, each group filled up to a power of two, so that they are in their order.
"""

import triton
import triton.language as tl

from octavo.ops.triton.activation_kernels import sigmoid, softplus
from octavo.ops.triton.ordering import LOWEST, at, first_of, key_of


@triton.jit
def _softmax(x, is_there):
    """Of the values that are there, over axis 1."""
    peak = tl.max(tl.where(is_there, key_of(x), LOWEST), axis=1)[:, None]
    # The key of the largest is its bits again.
    highest = tl.where(peak < 0, peak ^ 0x7FFFFFFF, peak).to(tl.float32, bitcast=True)
    weights = tl.where(is_there, tl.exp(x - highest), 0.0)
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def _scores(logits, is_there, KIND: tl.constexpr):
    if KIND == "softmax":
        return _softmax(logits, is_there)
    elif KIND == "sigmoid":
        return sigmoid(logits)
    elif KIND == "sqrt_softplus":
        return tl.sqrt_rn(softplus(logits))
    else:
        tl.static_assert(KIND == "logits")
        return logits


@triton.jit
def _kept_groups(
    choice,
    is_there,
    TOP: tl.constexpr,
    BEST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Whether each lane is of the TOP groups with the largest sums of their BEST largest, `[rows, lanes]`."""
    each = tl.reshape(choice, (ROWS, GROUPS, SIZE))
    keys = tl.reshape(tl.where(is_there, key_of(choice), LOWEST), (ROWS, GROUPS, SIZE))
    place = tl.arange(0, SIZE)[None, None, :]
    ranks = tl.zeros((ROWS, GROUPS), tl.float32)
    for _ in range(BEST):
        peak = tl.max(keys, axis=2)[:, :, None]
        first = tl.min(tl.where(keys == peak, place, SIZE), axis=2)[:, :, None]
        ranks += tl.sum(tl.where(place == first, each, 0.0), axis=2)
        keys = tl.where(place == first, LOWEST, keys)
    group = tl.arange(0, GROUPS)[None, :]
    is_group = tl.max(tl.reshape(is_there.to(tl.int32), (1, GROUPS, SIZE)), axis=2) > 0
    left = tl.where(is_group, key_of(ranks), LOWEST)
    kept = tl.zeros((ROWS, GROUPS), tl.int32)
    for _ in range(TOP):
        best = first_of(left, group)
        kept = tl.where(group == best, 1, kept)
        left = tl.where(group == best, LOWEST, left)
    return tl.reshape(tl.broadcast_to(kept[:, :, None], (ROWS, GROUPS, SIZE)), (ROWS, GROUPS * SIZE)) > 0


@triton.jit
def _normed(weights, is_choice, eps, least, NORM: tl.constexpr):
    """Divided by their norm: of p = NORM, or of the largest for infinity."""
    size = tl.where(is_choice, tl.abs(weights), 0.0)
    if NORM == 1.0:
        norm = tl.sum(tl.where(is_choice, weights, 0.0), axis=1)
    elif NORM == 2.0:
        norm = tl.sqrt_rn(tl.sum(size * size, axis=1))
    elif float("inf") == NORM:
        norm = tl.max(size, axis=1)
    else:
        norm = tl.exp(tl.log(tl.sum(tl.exp(tl.log(size) * NORM), axis=1)) / NORM)
    return weights / (tl.maximum(norm, least, propagate_nan=tl.PropagateNan.ALL)[:, None] + eps)


@triton.jit
def route_kernel(
    logits,
    bias,
    chosen,
    weights,
    experts,
    rows,
    stride,
    group_size,
    eps,
    least,
    factor,
    SCORES: tl.constexpr,
    NORM: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    BEST: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, GROUPS * SIZE)[None, :]
    is_row, is_there = row < rows, (lane // SIZE < NUM_GROUPS) & (lane % SIZE < group_size)
    expert = tl.where(is_there, lane // SIZE * group_size + lane % SIZE, -1)
    source, target = row.to(tl.int64) * stride, row.to(tl.int64) * TOP_K
    scores = _scores(tl.load(logits + source + expert, mask=is_row & is_there, other=0.0), is_there, SCORES)
    choice = scores
    if bias is not None:
        choice = scores + tl.load(bias + expert, mask=is_there, other=0.0)
    if NUM_GROUPS > 1:
        kept = _kept_groups(choice, is_there, TOP_GROUPS, BEST, ROWS, GROUPS, SIZE)
        choice = tl.where(kept, choice, float("-inf"))
    left, place = tl.where(is_there, key_of(choice), LOWEST), tl.arange(0, CHOICES)[None, :]
    found = tl.zeros((ROWS, CHOICES), tl.float32)
    for k in range(TOP_K):
        if chosen is None:
            best = first_of(left, lane)
            weight = tl.where(at(choice, lane, best) == float("-inf"), 0.0, at(scores, lane, best))
            left = tl.where(lane == best, LOWEST, left)
            number = best // SIZE * group_size + best % SIZE
            tl.store(experts + target + k, number.to(tl.int64), mask=is_row)
        else:
            weight = at(scores, expert, tl.load(chosen + target + k, mask=is_row, other=0))
        found = tl.where(place == k, weight, found)
    if NORM is not None:
        found = _normed(found, place < TOP_K, eps, least, NORM)
    tl.store(weights + target + place, found * factor, mask=is_row & (place < TOP_K))


@triton.jit
def sparse_mixer_kernel(
    logits,
    weights,
    experts,
    rows,
    stride,
    count,
    limit,
    TOP_K: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Experts one after the other, each weighed against those left that are not much worse."""
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, LANES)[None, :]
    is_row, is_there = row < rows, lane < count
    target = row.to(tl.int64) * TOP_K
    given = tl.load(logits + row.to(tl.int64) * stride + lane, mask=is_row & is_there, other=0.0)
    left, keys = given, tl.where(is_there, key_of(given), LOWEST)
    for k in range(TOP_K):
        best = first_of(keys, lane)
        peak = at(left, lane, best)
        size = tl.maximum(tl.abs(given), peak, propagate_nan=tl.PropagateNan.ALL)
        near = tl.where((peak - given) / size > limit, float("-inf"), left)
        tl.store(weights + target + k, at(_softmax(near, is_there), lane, best), mask=is_row)
        tl.store(experts + target + k, best.to(tl.int64), mask=is_row)
        left = tl.where(lane == best, float("-inf"), left)
        keys = tl.where(lane == best, LOWEST, keys)
