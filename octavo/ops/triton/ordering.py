"""The order of floats as whole numbers: the largest, and of equals the first, whatever the tile."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-2147483647)
"""Below every float's key."""


@triton.jit
def key_of(x):
    """Whole numbers in the order of float32 numbers: zeros are equal, what is not a number is above all."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # which makes -0 of 0
    return tl.where(x == x, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)


@triton.jit
def first_of(keys, lane):
    """Of each row of `keys` `[rows, lanes]` the first lane that has the largest, `[rows, 1]`; `lane` counts them."""
    peak = tl.max(keys, axis=1)[:, None]
    return tl.min(tl.where(keys == peak, lane, 0x7FFFFFFF), axis=1)[:, None]


@triton.jit
def at(values, lane, place):
    """Of each row of `values` `[rows, lanes]` the one at `place` `[rows, 1]`."""
    return tl.sum(tl.where(lane == place, values, 0.0), axis=1)[:, None]
