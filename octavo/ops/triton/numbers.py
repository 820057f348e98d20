"""Parts of kernels that work on numbers of several dtypes."""

import triton
import triton.language as tl

from octavo.ops.triton.launching import WIDENS


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """`x` in another dtype, to the nearest number, of two as near the even one.

    The interpreter's own conversion to bfloat16 leaves out the bits that there is no room for.
    """
    if WIDENS and tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        up = bits + 0x7FFF + ((bits >> 16) & 1)
        return tl.where(x == x, up & -65536, bits).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return x.to(DTYPE)


@triton.jit
def nearest(x):
    """`x` rounded to a whole number, of two as near the even one; between -2**22 and 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def sigmoid(x):
    """`1 / (1 + exp(-x))`."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """`log(1 + exp(x))`, and `x` itself where the difference is below float32's precision."""
    grown = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    # log1p: what rounding takes of 1 + grown is given back.
    whole = 1.0 + grown
    rest = grown - (whole - 1.0)
    return tl.where(x > 20.0, x, tl.log(whole) + rest / whole)
