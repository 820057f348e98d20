"""Rows sorted by what they are multiplied with, on the device: nothing is read back, and no shape depends on it."""

import triton
import triton.language as tl


@triton.jit
def group_kernel(keys, count, order, starts, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Where group `g`'s rows begin, and their numbers in ascending order; one program a group.

    `keys` `[count]` int64 are the rows' groups; those below zero are of none. `starts` is `[GROUPS + 1]`.
    """
    group = tl.program_id(0)
    each = tl.arange(0, BLOCK)
    before = 0
    for first in range(0, count, BLOCK):
        key = tl.load(keys + first + each, first + each < count, -1)
        before += tl.sum(((key >= 0) & (key < group)).to(tl.int32), 0)
    tl.store(starts + group, before)
    for first in range(0, count, BLOCK):
        key = tl.load(keys + first + each, first + each < count, -1)
        is_own = key == group
        own = is_own.to(tl.int32)
        tl.store(order + before + tl.cumsum(own, 0) - 1, first + each, is_own)
        before += tl.sum(own, 0)
    if group == GROUPS - 1:
        tl.store(starts + GROUPS, before)
