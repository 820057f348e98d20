"""A cache of keys and values in blocks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.specs import CacheSpec

SCALE_BYTES = 4
"""A row of an int8 cache ends with the float32 that its codes are multiplied with."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values `[blocks, kv heads, rows of a block, row]`, a row being numbers, or for int8 also their scale.

    A backend may let the tokens of a block lie in another order.
    """

    keys: Tensor
    values: Tensor
    """The keys themselves where values are their first part."""

    @property
    def dims(self) -> tuple[int, int]:
        """How many numbers a key and a value have."""
        less = SCALE_BYTES if self.keys.dtype == torch.int8 else 0
        return self.keys.shape[-1] - less, self.values.shape[-1] - less

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
    return KVCache(keys, zeros((*shape, _row(spec.value_dim, dtype)), dtype) if spec.value_dim else keys)


def block_bytes(spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that a block takes."""
    dtype, block_size = _dtype_of(spec, dtype), spec.rows_of(block_size)
    row = _row(spec.key_dim, dtype) + (_row(spec.value_dim, dtype) if spec.value_dim else 0)
    return spec.num_kv_heads * row * block_size * dtype.itemsize


def _dtype_of(spec: CacheSpec, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if spec.is_exact else dtype


def _row(dim: int, dtype: torch.dtype) -> int:
    """Elements of a row that holds `dim` numbers."""
    return dim + SCALE_BYTES if dtype == torch.int8 else dim
