"""What all kernels share: whether they are interpreted, sizes of tiles, and the few functions that they are made of.

On the processor, kernels run under Triton's interpreter (`TRITON_INTERPRET=1` before triton is imported): very slowly,
and with the results that a GPU has but for rounding. A launch there takes five milliseconds and each program one or
more, so that tiles are larger.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def wide(x):
    """`x` in float32, in which everything is computed."""
    return x.to(tl.float32)


INTERPRETED = not isinstance(wide, triton.JITFunction)
"""Whether kernels run under Triton's interpreter, on tensors of the processor."""

WIDENS = tl.constexpr(INTERPRETED)
"""The interpreter's products of bfloat16 are wrong, and the order of its sums is a library's, which depends on a tile's
sizes: it is given float64, of which float32 has the same bits in any order but for rare ties."""


@triton.jit
def dot(a, b, total):
    """`total + a @ b`, `[m, k]` by `[k, n]`, summed up in float32; of float32 without TensorFloat's rounding.

    The order of the sum over k is the instruction's, and the same for every row of a tile of the same shape.
    """
    if WIDENS:
        wider = tl.dot(a.to(tl.float64), b.to(tl.float64), total.to(tl.float64), out_dtype=tl.float64)
        return wider.to(tl.float32)
    else:
        return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """`x` in another dtype, to the nearest number, of two as near the even one (the interpreter cuts bfloat16 off)."""
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


ROWS = 8 if INTERPRETED else 1
"""Rows of a program, where a row is computed by itself (norms, activations)."""
MAX_COLUMNS = 4096
"""Columns of such a row that a program computes at a time."""
STAGES = 2 if torch.version.hip else 3
"""Blocks of terms that are on their way in products of 16 bits: as many as shared memory holds (64 KiB on AMD's)."""
PRODUCT_ROWS = 16
"""The fewest rows, columns and terms of `dot`."""


def columns_of(width: int) -> int:
    """Columns at a time of rows of so many: what a kernel's COLUMNS is, a power of two."""
    return min(MAX_COLUMNS, power_of_two(width))


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()


def cdiv(size: int, each: int) -> int:
    """How many times `each` covers `size`."""
    return -(-size // each)


def warps_of(columns: int) -> int:
    """Warps of a program that computes rows of so many columns at a time: a value or a few for each thread."""
    return min(8, max(1, columns // 256))


def together(x: Tensor) -> Tensor:
    """The tensor with the values of each row side by side; rows may lie apart."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """What a plan has made on the host, where kernels read it; the copy does not wait for the device."""
    return x if x.device == device else x.to(device, non_blocking=True)
