"""A cache of keys and values in blocks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.specs import CacheSpec

INT4 = torch.uint8
"""What a cache of 4-bit codes is made of: two codes a byte, of which PyTorch has no dtype of its own."""
SCALE_BYTES = 4
"""A row of an int8 cache ends with the float32 that its codes are multiplied with."""
GROUP = 32
"""Numbers that a row of an int4 cache has a scale and a low for; the last group is filled up."""
GROUP_CODES = GROUP // 2
"""Bytes of a group's codes: the low halves are of its first half, the high ones of its second."""
GROUP_BYTES = GROUP_CODES + 4
"""A group's codes, and two float16: the scale, and the low, which the code 0 means."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values `[blocks, kv heads, rows of a block, row]`.

    A row is numbers; for int8 codes and their scale; for int4 groups of codes, each with its scale and its low. A
    backend may let the tokens of a block lie in another order.
    """

    keys: Tensor
    values: Tensor
    """The keys themselves where values are their first part."""
    dims: tuple[int, int]
    """How many numbers a key and a value have."""

    @property
    def block_bytes(self) -> list[Tensor]:
        """All of it as `[blocks, bytes of a block]` uint8, keys, and values where they are not the keys."""
        tensors = [self.keys] if self.values is self.keys else [self.keys, self.values]
        return [tensor.view(torch.uint8).view(len(tensor), -1) for tensor in tensors]

    def clear(self, blocks: Tensor) -> None:
        """Zero these blocks."""
        self.keys[blocks] = 0
        self.values[blocks] = 0


def make_cache(
    spec: CacheSpec,
    blocks: int,
    block_size: int,
    dtype: torch.dtype,
    zeros: Callable[[tuple[int, ...], torch.dtype], Tensor],
) -> KVCache:
    """Zeros for `blocks` blocks."""
    shape = blocks, spec.num_kv_heads, spec.rows_of(block_size)
    dtype = _dtype_of(spec, dtype)
    keys = zeros((*shape, _row(spec.key_dim, dtype)), dtype)
    values = zeros((*shape, _row(spec.value_dim, dtype)), dtype) if spec.value_dim else keys
    return KVCache(keys, values, (spec.key_dim, spec.value_dim or spec.key_dim))


def block_bytes(spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that a block takes."""
    dtype, block_size = _dtype_of(spec, dtype), spec.rows_of(block_size)
    row = _row(spec.key_dim, dtype) + (_row(spec.value_dim, dtype) if spec.value_dim else 0)
    return spec.num_kv_heads * row * block_size * dtype.itemsize


def _dtype_of(spec: CacheSpec, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if spec.is_exact else dtype


def _row(dim: int, dtype: torch.dtype) -> int:
    """Elements of a row that holds `dim` numbers."""
    if dtype == INT4:
        return -(-dim // GROUP) * GROUP_BYTES
    return dim + SCALE_BYTES if dtype == torch.int8 else dim
