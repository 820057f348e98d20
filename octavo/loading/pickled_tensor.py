"""Tensors of PyTorch's files: where they lie, and their numbers."""

import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.files import open_file
from octavo.loading.tensor_source import TensorSource, cut
from octavo.parts.weight_slots import Shard


@dataclass(frozen=True)
class Storage:
    """Numbers of one type that tensors lie in."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class View:
    """A tensor in a storage: `offset` and `stride` in elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class PickledTensor(TensorSource):
    """A tensor of a PyTorch file, read when wanted."""

    def __init__(self, path: Path, view: View, start: int) -> None:
        self.path, self.view, self.start = path, view, start + view.offset * view.dtype.itemsize
        self.shape = view.shape

    def read(self) -> Tensor:
        if not self.view.span:
            return torch.empty(self.shape, dtype=self.view.dtype)
        data = np.empty(self.view.span * self.view.dtype.itemsize, np.uint8)
        with open_file(self.path) as file:
            file.seek(self.start)
            if file.readinto(data.data) != data.nbytes:
                raise CheckpointError(f"{self.path} is cut short. Download it again.")
        return torch.from_numpy(data).view(self.view.dtype).as_strided(self.shape, self.view.stride)

    def part(self, shard: Shard) -> TensorSource:
        return _PickledPart(self, shard)


class _PickledPart(TensorSource):
    """What a shard takes of a tensor: its pages of the file alone are read."""

    def __init__(self, whole: PickledTensor, shard: Shard) -> None:
        self.whole, self.shard = whole, shard
        self.shape = shard.shape_of(whole.shape)

    def read(self) -> Tensor:
        view, start, path = self.whole.view, self.whole.start, self.whole.path
        out = torch.empty(self.shape, dtype=view.dtype)
        if not out.numel():
            return out
        first, size = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY, view.span * view.dtype.itemsize
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size < start + size:
                raise CheckpointError(f"{path} is cut short. Download it again.")
            mapped = mmap.mmap(file.fileno(), start + size - first, access=mmap.ACCESS_READ, offset=first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the map cannot be written to, and is not
            data = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=start - first)
        if data.data_ptr() % view.dtype.itemsize:  # files of before 1.6 have their numbers anywhere
            return cut(self.whole.read(), self.shard)
        return out.copy_(cut(data.view(view.dtype).as_strided(view.shape, view.stride), self.shard))
