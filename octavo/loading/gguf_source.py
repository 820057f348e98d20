"""Tensors of a GGUF file, dequantized by the `gguf` package as they are read."""

import mmap
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.loading.gguf_file import GGUFFile, drop_pages
from octavo.loading.gguf_reader import GGUFTensor
from octavo.loading.tensor_source import TensorSource, cut
from octavo.ops import StoredRows
from octavo.ops.stored_rows import FLOATS
from octavo.ops.weight_kinds import WeightKind
from octavo.parts.weight_slots import Shard, ranges_size

KINDS = frozenset(WeightKind)
FLOAT_TYPES = {kind: dtype for dtype, kind in FLOATS.items()}

_PIECE_BYTES = 1 << 17
"""Stored bytes dequantized at a time: what a core's cache holds with the values and temporaries."""


class GGUFSource(TensorSource):
    """A tensor of a GGUF file, dequantized as it is read.

    Args:
        data: the file, mapped.
        tensor: where it lies there.
        index: of one of a stack of tensors.
        shard: what to take of it, whose axes are two; None for all.
    """

    def __init__(
        self, data: mmap.mmap, tensor: GGUFTensor, index: int | None = None, shard: Shard | None = None
    ) -> None:
        self._data, self._tensor, self._index, self._shard = data, tensor, index, shard
        shape = tensor.shape if index is None else tensor.shape[1:]
        self.shape = shape if shard is None else shard.shape_of(shape)

    def item(self, index: int) -> "GGUFSource":
        """One of a stack of tensors (llama.cpp keeps a layer's experts in one)."""
        return GGUFSource(self._data, self._tensor, index)

    def part(self, shard: Shard) -> TensorSource:
        if self._shard is not None or len(self.shape) != 2:
            return super().part(shard)
        return GGUFSource(self._data, self._tensor, self._index, shard)

    def _rows(self) -> "np.ndarray[Any, Any]":
        """The stored bytes as [rows, bytes of a row]."""
        t = self._tensor
        rows = max(1, int(np.prod(t.shape[:-1], dtype=np.int64)))
        stored = np.frombuffer(self._data, dtype=np.uint8, count=t.nbytes, offset=t.offset).reshape(rows, -1)
        if self._index is not None:
            each = rows // t.shape[0]
            stored = stored[self._index * each : (self._index + 1) * each]
        return stored

    @property
    def _width(self) -> int:
        """Values in a row of the file."""
        return self._tensor.shape[-1] if self._tensor.shape else 1

    def copy_to(self, target: Tensor) -> None:
        stored, shard = self._rows(), self._shard or Shard()
        of_rows = shard.rows or ((0, len(stored)),)
        of_columns = shard.columns or ((0, self._width),)
        size = (ranges_size(of_rows), ranges_size(of_columns))
        flat = target.view(size) if target.is_contiguous() else None
        if flat is None:
            target.copy_(self.read())
            return
        kind, pieces, first = self._tensor.kind, list[tuple[np.ndarray[Any, Any], Tensor]](), 0
        step = max(1, _PIECE_BYTES // max(1, stored.shape[1]))
        for begin, end in of_rows:
            for at in range(begin, end, step):
                count = min(step, end - at)
                pieces.append((stored[at : at + count], flat[first : first + count]))
                first += count

        def piece(rows: "np.ndarray[Any, Any]", into: Tensor) -> None:
            column = 0
            for begin, end in of_columns:
                if begin < end:
                    values = _dequantize_columns(rows, kind, begin, end)
                    into[:, column : column + end - begin].copy_(torch.from_numpy(values))
                column += end - begin

        if len(pieces) <= 1:
            for each in pieces:
                piece(*each)
        else:
            with ThreadPoolExecutor(min(len(pieces), torch.get_num_threads())) as pool:
                list(pool.map(piece, *zip(*pieces, strict=True)))
        drop_pages(self._data, self._tensor.offset, self._tensor.offset + self._tensor.nbytes)

    def stored(self) -> StoredRows | None:
        """The rows as the file has them, where they are computed with so; they stay in the file's memory map.

        None as well for a part of their columns that begins or ends within a block.
        """
        if len(self.shape) != 2 or self._tensor.kind not in KINDS:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the map cannot be written to, and is not
            data = torch.from_numpy(self._rows())
        shard = self._shard or Shard()
        if shard.columns is not None:
            block, block_bytes = _block(self._tensor.kind)
            if any(column % block for columns in shard.columns for column in columns):
                return None
            columns = tuple((a // block * block_bytes, b // block * block_bytes) for a, b in shard.columns)
            shard = Shard(shard.rows, columns)
        kind = WeightKind(self._tensor.kind)
        data, dtype = cut(data, shard), FLOAT_TYPES.get(kind)
        return StoredRows(kind, self.shape[1], data if dtype is None else data.view(dtype))

    def read(self) -> Tensor:
        out = torch.empty(self.shape, dtype=torch.float32)
        self.copy_to(out)
        return out


def gguf_source(file: GGUFFile, name: str) -> GGUFSource:
    """The tensor `name` of `file`."""
    tensor = file.tensors[name]
    return GGUFSource(file.data(tensor), tensor)


def _block(kind: int) -> tuple[int, int]:
    """Values and bytes of what is stored together."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(values), int(size)


def _dequantize_columns(rows: "np.ndarray[Any, Any]", kind: int, begin: int, end: int) -> "np.ndarray[Any, Any]":
    """Columns of stored rows as floats. No more than the blocks that they are in is looked at."""
    block, size = _block(kind)
    first, last = begin // block, -(-end // block)
    values = _dequantize(rows[:, first * size : last * size], kind, (last - first) * block)
    return values[:, begin - first * block : end - first * block]


def _dequantize(rows: np.ndarray[Any, Any], kind: int, width: int) -> np.ndarray[Any, Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    quantization = GGMLQuantizationType(kind)
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(quantization.name)
    if plain:
        return np.ascontiguousarray(rows).view(plain).astype(np.float32).reshape(len(rows), width)
    try:
        # As one long row: the package works in groups of a few rows, which costs more than the arithmetic.
        values: np.ndarray[Any, Any] = dequantize(rows.reshape(1, -1), quantization)
    except NotImplementedError as error:
        raise CheckpointError(f"GGUF tensors of type {quantization.name} cannot be read: {error}") from error
    return values.reshape(len(rows), width)
