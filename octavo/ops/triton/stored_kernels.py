"""Weights of any kind as kernels read them, unpacked piece by piece in registers.

What a weight is depends on nothing but its own bits: kernels for few rows and for many call the same function for the
same piece, so that they multiply with the same numbers.
"""

import triton
import triton.language as tl


@triton.jit
def _value(code, table, VALUE: tl.constexpr, ZERO: tl.constexpr):
    """What codes `[outputs, piece]` uint8 mean, in float32. The constants are stored_layouts.Value's."""
    if VALUE == 0:
        return code.to(tl.float32) - ZERO
    elif VALUE == 1:
        return tl.load(table + code.to(tl.int32))
    elif VALUE == 2:  # a float16 of the same bits is a 2**-14th
        bits = ((code & 8).to(tl.uint16) << 12) | ((code & 7).to(tl.uint16) << 9)
        return bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
    elif VALUE == 3:  # a 256th
        bits = ((code & 128).to(tl.uint16) << 8) | ((code & 127).to(tl.uint16) << 7)
        return bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _factor(at, FACTOR: tl.constexpr, index, mask):
    """Numbers of the plane at `at` as float32."""
    if FACTOR == 1:
        return tl.load(at.to(tl.pointer_type(tl.float16)) + index, mask, 0.0).to(tl.float32)
    elif FACTOR == 2:
        return tl.load(at.to(tl.pointer_type(tl.float32)) + index, mask, 0.0)
    else:
        return (tl.load(at + index, mask, 0).to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _small(at, SMALL: tl.constexpr, index, mask):
    """The same of small numbers; NIBBLES as they are."""
    if SMALL == 1:
        return tl.load(at.to(tl.pointer_type(tl.int8)) + index, mask, 0).to(tl.float32)
    elif SMALL == 2:
        return tl.load(at + index, mask, 0).to(tl.float32)
    elif SMALL == 3:
        return tl.load(at + index, mask, 0)
    else:
        return tl.load(at.to(tl.pointer_type(tl.float16)) + index, mask, 0.0).to(tl.float32)


@triton.jit
def low_bits(weight, tile, load: tl.constexpr, o, mask, outputs, L: tl.constexpr):
    """`[outputs, piece]` bytes of the plane of lowest bits."""
    at = ((tile * L.loads + load) * outputs + o) * L.piece
    return tl.load(weight + at[:, None] + tl.arange(0, L.piece)[None, :], mask[:, None], 0)


@triton.jit
def high_bits(weight, tile, o, mask, outputs, L: tl.constexpr):
    """The same of the plane of highest bits, which is a tile's."""
    at = (tile * outputs + o) * L.piece
    return tl.load(weight + at[:, None] + tl.arange(0, L.piece)[None, :], mask[:, None], 0)


@triton.jit
def codes_of(low, high, load: tl.constexpr, shift: tl.constexpr, L: tl.constexpr):
    """`[outputs, piece]` uint8 codes of piece `shift * loads + load` of the tile whose bytes these are."""
    code = low
    if L.low < 8:
        code = (low >> (L.low * shift)) & ((1 << L.low) - 1)
    if L.high != 0:
        more = (high >> (L.high * (shift * L.loads + load))) & ((1 << L.high) - 1)
        code = code | (more << L.low)
    return code


@triton.jit
def scaled(code, factors, smalls, table, column, o, mask, outputs, L: tl.constexpr):
    """`[outputs, piece]` float32 weights of codes, of the piece that begins at `column`."""
    value = _value(code, table, L.value, L.zero)
    index = column // L.factor_columns * L.factors * outputs + o
    scale = _factor(factors, L.factor, index, mask)
    low = scale
    if L.factors == 2:
        low = _factor(factors, L.factor, index + outputs, mask)
    if L.small != 0:
        index = column // L.small_columns * L.smalls * outputs + o
        small = _small(smalls, L.small, index, mask)
        if L.small == 3:
            scale = scale * (small & 15).to(tl.float32)
            low = low * (small >> 4).to(tl.float32)
        else:
            scale = scale * small
            if L.smalls == 2:
                low = low * _small(smalls, L.small, index + outputs, mask)
    if L.min_scale != 0.0:
        return tl.fma(value, scale[:, None], (low * L.min_scale)[:, None])  # never two roundings
    else:
        return value * scale[:, None]
