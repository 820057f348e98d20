"""Rows of quantized kinds as files have them, taken apart on the device into the numbers that are packed.

Blocks are `[rows, blocks, bytes]` uint8. What each format's bytes mean is ggml's, and octavo.loading.formats' for the
kinds that GGUF files lack; the compiled core has the same in `formats.h`, `super_blocks.h`, `grids.h` and `scaled.h`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.grids import codes_of_points
from octavo.ops.weight_kinds import WeightKind


@dataclass(frozen=True)
class Numbers:
    """Of rows of a weight."""

    codes: Tensor
    """[rows, columns] uint8"""
    factors: Tensor
    """[rows, groups, numbers] float16 or float32, or uint8 exponents"""
    smalls: Tensor | None = None
    """[rows, groups, numbers] int8, uint8 or float16"""


def _numbers(codes: Tensor, factors: Tensor, smalls: Tensor | None = None) -> Numbers:
    """Of all blocks side by side; `factors` and `smalls` are `[rows, blocks, groups, numbers]`."""
    small = None if smalls is None else smalls.flatten(1, 2).contiguous()
    return Numbers(codes.flatten(1).to(torch.uint8), factors.flatten(1, 2), small)


def _as(dtype: torch.dtype, blocks: Tensor, at: int, count: int = 1) -> Tensor:
    """`[rows, blocks, count]` numbers of the bytes from `at` on."""
    return blocks[..., at : at + count * dtype.itemsize].contiguous().view(dtype)


def _word(blocks: Tensor) -> Tensor:
    """The bytes of the last dimension as one whole number in int64, the lowest first."""
    places = torch.arange(blocks.shape[-1], device=blocks.device) * 8
    return (blocks.long() << places).sum(-1)


def _bits(numbers: Tensor, count: int, of_each: int = 1) -> Tensor:
    """`count` numbers of `of_each` bits in each, along a new last dimension, the lowest first."""
    places = torch.arange(count, device=numbers.device) * of_each
    shifted: Tensor = numbers.unsqueeze(-1) >> places
    return shifted & ((1 << of_each) - 1)


def _halves(q: Tensor) -> Tensor:
    """The lower halves of bytes, then the upper ones."""
    return torch.cat([q & 15, q >> 4], dim=-1)


def _in_turn(q: Tensor) -> Tensor:
    """The lower and the upper half of each byte."""
    return torch.stack([q & 15, q >> 4], dim=-1).flatten(-2)


def _simple(bits: int, has_min: bool) -> Callable[[Tensor], Numbers]:
    def read(b: Tensor) -> Numbers:
        header = 4 if has_min else 2
        factors, q = _as(torch.float16, b, 0, header // 2), b[..., header:]
        if bits == 8:
            return _numbers(q ^ 0x80, factors.unsqueeze(2))
        if bits == 4:
            return _numbers(_halves(q), factors.unsqueeze(2))
        fifth = _bits(_word(q[..., :4]), 32).to(torch.uint8)
        return _numbers(_halves(q[..., 4:]) | fifth << 4, factors.unsqueeze(2))

    return read


def _grouped(bits: int, count: int) -> Callable[[Tensor], Numbers]:
    """A header of so many float32 numbers, then codes."""

    def read(b: Tensor) -> Numbers:
        q = b[..., 4 * count :]
        return _numbers(q if bits == 8 else _in_turn(q), _as(torch.float32, b, 0, count).unsqueeze(2))

    return read


def _pairs_of_bits(q: Tensor) -> Tensor:
    """`[..., 64]` bytes as 256 codes: of each 32 bytes one bit pair after the other."""
    parts = q.unflatten(-1, (2, 1, 32))
    pairs: Tensor = parts >> torch.arange(0, 8, 2, device=q.device).view(4, 1) & 3
    return pairs.to(torch.uint8).flatten(-3)


def _super_block(bits: int) -> Callable[[Tensor], Numbers]:
    """Q4_K and Q5_K."""

    def read(b: Tensor) -> Numbers:
        first, second, third = b[..., 4:8], b[..., 8:12], b[..., 12:16]
        scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=-1)
        mins = torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=-1)
        q = b[..., 16 + (32 if bits == 5 else 0) :].unflatten(-1, (4, 32))
        codes = torch.cat([q & 15, q >> 4], dim=-1).flatten(-2)
        if bits == 5:
            fifth = _bits(b[..., 16:48], 8).transpose(-1, -2)  # of column l in each of 8 blocks
            codes = codes | fifth.flatten(-2) << 4
        return _numbers(codes, _as(torch.float16, b, 0, 2).unsqueeze(2), torch.stack([scales, mins], dim=-1))

    return read


def _q2_k(b: Tensor) -> Numbers:
    factors = _as(torch.float16, b, 80, 2).unsqueeze(2)
    return _numbers(_pairs_of_bits(b[..., 16:80]), factors, b[..., :16].unsqueeze(-1))


def _q3_k(b: Tensor) -> Numbers:
    packed = b[..., 96:108]
    low = _halves(packed[..., :8])
    high = _bits(packed[..., 8:], 4, 2).transpose(-1, -2).flatten(-2)
    scales = (low | high << 4).to(torch.int8) - 32
    third = _bits(b[..., :32], 8).transpose(-1, -2).flatten(-2)
    codes = _pairs_of_bits(b[..., 32:96]) | third << 2
    return _numbers(codes, _as(torch.float16, b, 108).unsqueeze(2), scales.unsqueeze(-1))


def _q6_k(b: Tensor) -> Numbers:
    low = b[..., :128].unflatten(-1, (2, 2, 32))
    low = torch.cat([low & 15, low >> 4], dim=-2)  # [..., halves, quarters, 32]
    high = _bits(b[..., 128:192].unflatten(-1, (2, 32)), 4, 2).transpose(-1, -2)
    codes = (low | high << 4).flatten(-3)
    return _numbers(codes, _as(torch.float16, b, 208).unsqueeze(2), b[..., 192:208].view(torch.int8).unsqueeze(-1))


def _iq4_xs(b: Tensor) -> Numbers:
    low = _in_turn(b[..., 4:8])
    high = _bits(b[..., 2:4], 4, 2).flatten(-2)
    scales = (low | high << 4).to(torch.int8) - 32
    codes = _halves(b[..., 8:].unflatten(-1, (8, 16))).flatten(-2)
    return _numbers(codes, _as(torch.float16, b, 0).unsqueeze(2), scales.unsqueeze(-1))


def _grid(kind: WeightKind, numbers: Tensor) -> Tensor:
    """`[..., columns]` the codes of points of these numbers."""
    grid = codes_of_points(kind)
    assert grid is not None
    return grid.to(numbers.device)[numbers]


def _even_signs(seven: Tensor) -> Tensor:
    """The lowest 7 of 8 signs, whose product is positive, in bits."""
    seven = seven & 127
    return seven | (_bits(seven, 7).sum(-1) & 1) << 7


def _signed(points: Tensor, signs: Tensor, count: int) -> Tensor:
    """Codes of points `[..., columns]` of `count` values, those below zero first; `signs` has a bit for each column."""
    is_negative = _bits(signs, points.shape[-1]).bool()
    return torch.where(is_negative, count - 1 - points, count + points).to(torch.uint8)


def _odd(numbers: Tensor) -> Tensor:
    """A scale of `2 * n + 1`, of numbers of 4 bits."""
    return (2 * (numbers & 15) + 1).to(torch.int8).unsqueeze(-1)


def _iq2_xxs(b: Tensor) -> Numbers:
    block = b[..., 2:].unflatten(-1, (8, 8))
    rest = _word(block[..., 4:])
    points = _grid(WeightKind.IQ2_XXS, block[..., :4].long())
    codes = _signed(points, _even_signs(_bits(rest, 4, 7)), 3)
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), _odd(rest >> 28))


def _iq2_xs(b: Tensor) -> Numbers:
    numbers = _word(b[..., 2:66].unflatten(-1, (32, 2)))
    codes = _signed(_grid(WeightKind.IQ2_XS, numbers & 511), _even_signs(numbers >> 9), 3)
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), _odd(_in_turn(b[..., 66:74])))


def _iq2_s(b: Tensor) -> Numbers:
    high = _bits(b[..., 66:74].long(), 4, 2).flatten(-2)
    points = _grid(WeightKind.IQ2_S, b[..., 2:34].long() | high << 8)
    codes = _signed(points, b[..., 34:66].long(), 3)
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), _odd(_in_turn(b[..., 74:82])))


def _iq3_xxs(b: Tensor) -> Numbers:
    rest = _word(b[..., 66:].unflatten(-1, (8, 4)))
    points = _grid(WeightKind.IQ3_XXS, b[..., 2:66].long()).unflatten(2, (8, 4, 2)).flatten(-2)  # two of 4 columns
    codes = _signed(points, _even_signs(_bits(rest, 4, 7)), 8)
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), _odd(rest >> 28))


def _iq3_s(b: Tensor) -> Numbers:
    high = _bits(b[..., 66:74].long(), 8).flatten(-2)
    points = _grid(WeightKind.IQ3_S, b[..., 2:66].long() | high << 8).unflatten(2, (32, 2)).flatten(-2)
    codes = _signed(points, b[..., 74:106].long(), 8)
    scales = 2 * _odd(_in_turn(b[..., 106:110]))  # values are twice what codes are above their zero
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), scales)


def _iq1_s(b: Tensor) -> Numbers:
    high = _word(b[..., 34:].unflatten(-1, (8, 2)))
    low = b[..., 2:34].long().unflatten(-1, (8, 4))
    codes = _grid(WeightKind.IQ1_S, low | _bits(high, 4, 3) << 8)
    scales = 2 * (high >> 12 & 7) + 1
    mins = scales * torch.where(high >> 15 == 1, 9, 7)
    smalls = torch.stack([scales, mins], dim=-1).to(torch.uint8)
    return _numbers(codes.flatten(2), _as(torch.float16, b, 0).unsqueeze(2), smalls)


def _iq1_m(b: Tensor) -> Numbers:
    words = _word(b[..., 48:].unflatten(-1, (4, 2)))
    d = (words >> 12 << torch.arange(0, 16, 4, device=b.device)).sum(-1)
    factors = torch.stack([d & 255, d >> 8], dim=-1).to(torch.uint8).view(torch.float16)
    both = _bits(b[..., 32:48].long(), 2, 4).flatten(-2)  # of groups of 8, 3 bits of the number and a sign
    points = _grid(WeightKind.IQ1_M, b[..., :32].long() | (both & 7) << 8)
    is_added = (both >> 3 == 0).unsqueeze(-1)
    codes = points + 3 * is_added.to(torch.uint8)
    scales = (2 * _bits(words, 4, 3).flatten(-2) + 1).to(torch.int8).unsqueeze(-1)
    return _numbers(codes.flatten(2), factors.unsqueeze(2), scales)


def _tq2_0(b: Tensor) -> Numbers:
    return _numbers(_pairs_of_bits(b[..., :64]), _as(torch.float16, b, 64).unsqueeze(2))


def _tq1_0(b: Tensor) -> Numbers:
    """Five digits in a byte, as a 243rd and its multiples."""

    def digits(q: Tensor, count: int) -> Tensor:
        powers = torch.tensor([1, 3, 9, 27, 81][:count], device=q.device).view(count, 1)
        return ((q.int().unsqueeze(-2) * powers & 255) * 3 >> 8).to(torch.uint8).flatten(-2)

    codes = torch.cat([digits(b[..., :32], 5), digits(b[..., 32:48], 5), digits(b[..., 48:52], 4)], dim=-1)
    return _numbers(codes, _as(torch.float16, b, 52).unsqueeze(2))


def _mxfp4(b: Tensor) -> Numbers:
    exponent = b[..., :1]
    smallest = torch.where(exponent < 2, torch.zeros_like(exponent), exponent)  # 2**-126 and less are zero
    return _numbers(_halves(b[..., 1:]), smallest.unsqueeze(-1))


def _nvfp4(b: Tensor) -> Numbers:
    factors = 2 * _as(torch.float32, b, 0)  # of the codes' halves
    return _numbers(_in_turn(b[..., 12:]), factors.unsqueeze(2), _as(torch.float16, b, 4, 4).unsqueeze(-1))


def _gguf_nvfp4(b: Tensor) -> Numbers:
    """Scales are 8-bit floats: as float16 with the same bits they are a 256th of these."""
    scales = b[..., :4]
    bits = torch.where(scales == 0x7F, 0, (scales & 0x7F).int() << 7).to(torch.int16)
    factors = torch.full((*b.shape[:2], 1, 1), 256.0, device=b.device)
    codes = _halves(b[..., 4:].unflatten(-1, (4, 8))).flatten(2)
    return _numbers(codes, factors, bits.view(torch.float16).unsqueeze(-1))


READERS: dict[WeightKind, Callable[[Tensor], Numbers]] = {
    WeightKind.Q4_0: _simple(4, False),
    WeightKind.Q4_1: _simple(4, True),
    WeightKind.Q5_0: _simple(5, False),
    WeightKind.Q5_1: _simple(5, True),
    WeightKind.Q8_0: _simple(8, False),
    WeightKind.Q2_K: _q2_k,
    WeightKind.Q3_K: _q3_k,
    WeightKind.Q4_K: _super_block(4),
    WeightKind.Q5_K: _super_block(5),
    WeightKind.Q6_K: _q6_k,
    WeightKind.IQ2_XXS: _iq2_xxs,
    WeightKind.IQ2_XS: _iq2_xs,
    WeightKind.IQ2_S: _iq2_s,
    WeightKind.IQ3_XXS: _iq3_xxs,
    WeightKind.IQ3_S: _iq3_s,
    WeightKind.IQ1_S: _iq1_s,
    WeightKind.IQ1_M: _iq1_m,
    WeightKind.IQ4_NL: _simple(4, False),
    WeightKind.IQ4_XS: _iq4_xs,
    WeightKind.TQ1_0: _tq1_0,
    WeightKind.TQ2_0: _tq2_0,
    WeightKind.MXFP4: _mxfp4,
    WeightKind.GGUF_NVFP4: _gguf_nvfp4,
    WeightKind.NVFP4: _nvfp4,
    WeightKind.U4_32: _grouped(4, 2),
    WeightKind.U4_64: _grouped(4, 2),
    WeightKind.U4_128: _grouped(4, 2),
    WeightKind.U8_32: _grouped(8, 1),
    WeightKind.U8_128: _grouped(8, 1),
    WeightKind.U8_MIN_32: _grouped(8, 2),
    WeightKind.U8_MIN_128: _grouped(8, 2),
    WeightKind.E4M3: _grouped(8, 1),
    WeightKind.E5M2: _grouped(8, 1),
    WeightKind.NF4: _grouped(4, 1),
    WeightKind.FP4: _grouped(4, 1),
}
"""By kind: takes blocks of rows apart."""
