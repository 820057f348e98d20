"""Tensors of a GGUF file, dequantized by the `gguf` package as they are read."""

import mmap
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_reader import GGUFTensor
from octavo.loading.tensor_source import TensorSource
from octavo.ops import StoredRows
from octavo.ops.stored_rows import FLOATS
from octavo.ops.weight_kinds import WeightKind

KINDS = frozenset(WeightKind)
FLOAT_TYPES = {kind: dtype for dtype, kind in FLOATS.items()}

_PIECE_BYTES = 1 << 17
"""Stored bytes dequantized at a time: what a core's cache holds with the values and temporaries."""


class GGUFSource(TensorSource):
    """A tensor of a GGUF file, dequantized as it is read."""

    def __init__(self, data: mmap.mmap, tensor: GGUFTensor, index: int | None = None) -> None:
        self._data, self._tensor, self._index = data, tensor, index
        self.shape = tensor.shape if index is None else tensor.shape[1:]

    def item(self, index: int) -> "GGUFSource":
        """One of a stack of tensors (llama.cpp keeps a layer's experts in one)."""
        return GGUFSource(self._data, self._tensor, index)

    def _rows(self) -> tuple[np.ndarray[Any, Any], int]:
        """The stored bytes as [rows, bytes of a row], and the values in a row."""
        t = self._tensor
        width = t.shape[-1] if t.shape else 1
        rows = max(1, int(np.prod(t.shape[:-1], dtype=np.int64)))
        stored = np.frombuffer(self._data, dtype=np.uint8, count=t.nbytes, offset=t.offset).reshape(rows, -1)
        if self._index is not None:
            each = rows // t.shape[0]
            stored = stored[self._index * each : (self._index + 1) * each]
        return stored, width

    def copy_to(self, target: Tensor) -> None:
        stored, width = self._rows()
        flat = target.view(stored.shape[0], width) if target.is_contiguous() else None
        if flat is None:
            target.copy_(self.read())
            return
        step = max(1, _PIECE_BYTES // max(1, stored.shape[1]))

        def piece(first: int) -> None:
            values = _dequantize(stored[first : first + step], self._tensor.kind, width)
            flat[first : first + step].copy_(torch.from_numpy(values))

        firsts = range(0, stored.shape[0], step)
        if len(firsts) == 1:
            piece(0)
        else:
            with ThreadPoolExecutor(min(len(firsts), torch.get_num_threads())) as pool:
                list(pool.map(piece, firsts))
        self._drop_pages()

    def stored(self) -> StoredRows | None:
        """The rows as the file has them, where they are computed with so; they stay in the file's memory map."""
        if len(self.shape) != 2 or self._tensor.kind not in KINDS:
            return None
        stored, width = self._rows()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the map cannot be written to, and is not
            data = torch.from_numpy(stored)
        kind = WeightKind(self._tensor.kind)
        dtype = FLOAT_TYPES.get(kind)
        return StoredRows(kind, width, data if dtype is None else data.view(dtype))

    def _drop_pages(self) -> None:
        """Tell the system that the tensor's pages of the file were used, so that they do not count as ours."""
        if hasattr(self._data, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            first = self._tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, first, self._tensor.offset + self._tensor.nbytes - first)

    def read(self) -> Tensor:
        out = torch.empty(self.shape, dtype=torch.float32)
        self.copy_to(out)
        return out


def gguf_source(file: GGUFFile, name: str) -> GGUFSource:
    """The tensor `name` of `file`."""
    tensor = file.tensors[name]
    return GGUFSource(file.data(tensor), tensor)


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
