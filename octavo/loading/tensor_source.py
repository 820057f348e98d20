"""Tensors of a checkpoint, read when they are needed."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.ops.stored_rows import FLOATS, StoredRows, of_floats

Transform = Callable[[Tensor], Tensor]


class TensorSource(ABC):
    """A tensor that is stored somewhere, or a weight that is made of several."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self) -> Tensor:
        """The tensor, in the dtype in which it is stored; floats where that is no dtype."""

    def copy_to(self, target: Tensor) -> None:
        """Fill `target` of the same shape, whatever its dtype and device."""
        target.copy_(self.read())

    def stored(self) -> StoredRows | None:
        """A weight's rows as they are stored, where they are of a kind that backends multiply with."""
        tensor = self.read() if len(self.shape) == 2 else None
        return of_floats(tensor) if tensor is not None and tensor.dtype in FLOATS else None


class TensorInMemory(TensorSource):
    """A tensor that has been read."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def read(self) -> Tensor:
        return self.tensor


class TransformedTensor(TensorSource):
    """A tensor that is changed as it is read. Raises RuntimeError where its shape does not fit the change."""

    def __init__(self, source: TensorSource, transform: Transform) -> None:
        self.source, self.transform = source, transform
        self.shape = tuple(transform(torch.empty(source.shape, device="meta")).shape)

    def read(self) -> Tensor:
        return self.transform(self.source.read())

    def stored(self) -> StoredRows | None:
        rows = self.source.stored()
        if rows is None or rows.data.is_floating_point():
            return None if rows is None else of_floats(self.transform(rows.data))
        order = _row_order(self.transform, self.source.shape)
        return None if order is None else StoredRows(rows.kind, rows.width, rows.data[order])


def _row_order(transform: Transform, shape: tuple[int, ...]) -> Tensor | None:
    """Which row each row of a changed `[rows, width]` tensor was, where the change does no more than move rows."""
    if len(shape) != 2:
        return None
    rows = shape[0]
    tagged = torch.stack([torch.arange(rows), torch.arange(rows) + rows], dim=1)  # two columns that tell their rows
    try:
        moved = transform(tagged)
    except (RuntimeError, TypeError):
        return None
    if moved.dim() != 2 or moved.shape[1] != 2 or moved.dtype != tagged.dtype:
        return None
    order = moved[:, 0]
    sound = (moved[:, 1] - order == rows) & (order >= 0) & (order < rows)
    return order if bool(sound.all()) else None
