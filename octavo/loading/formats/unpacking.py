"""Codes of 1 to 8 bits out of the integers that checkpoints pack them into."""

import math

import torch
from torch import Tensor


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """The codes of each row, one after the other from the lowest bits up, across the borders of integers.

    Args:
        words: [rows, n] int32, or uint8 for codes that lie within bytes.
        bits: of a code, 1 to 8.
        count: codes of a row.

    Returns: [rows, count] uint8.
    """
    if 8 % bits == 0:
        whole = words.contiguous().view(torch.uint8)
        if bits == 8:
            return whole[:, :count]
        fields = [(whole >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)]
        return torch.stack(fields, dim=-1).flatten(1)[:, :count]
    # A period is as many words as end where a code does.
    period, codes = bits // math.gcd(bits, 32), 32 // math.gcd(bits, 32)
    wide = words.to(torch.int64) & 0xFFFFFFFF
    wide = torch.nn.functional.pad(wide, (0, -wide.shape[1] % period)).view(len(words), -1, period)
    out = torch.empty(*wide.shape[:2], codes, dtype=torch.uint8)
    for code in range(codes):
        word, at = divmod(code * bits, 32)
        field = wide[..., word] >> at
        if at + bits > 32:
            field = field | wide[..., word + 1] << (32 - at)
        out[..., code] = (field & ((1 << bits) - 1)).to(torch.uint8)
    return out.flatten(1)[:, :count]


def words_of(count: int, bits: int) -> int:
    """How many int32 hold `count` codes."""
    return -(-count * bits // 32)


def nibbles(packed: Tensor, high_first: bool = False) -> Tensor:
    """Two codes a byte, `[rows, n]` uint8 to `[rows, 2 n]`: the low half first, or the high one."""
    low, high = packed & 15, packed >> 4
    return torch.stack([high, low] if high_first else [low, high], dim=-1).flatten(1)
