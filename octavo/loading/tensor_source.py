"""Tensors of a checkpoint, read when they are needed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from octavo.ops.stored_rows import FLOATS, StoredRows, of_floats
from octavo.parts.weight_slots import Ranges, Shard

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

    def part(self, shard: Shard) -> "TensorSource":
        """What a shard takes of the tensor. The rest is not read, where the format allows that."""
        return TensorPart(self, shard)


class TensorInMemory(TensorSource):
    """A tensor that has been read."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def read(self) -> Tensor:
        return self.tensor


class ExpertStack(TensorSource):
    """A weight of each expert, `[experts, inputs, outputs]`, that is read expert by expert."""

    @abstractmethod
    def expert(self, number: int) -> TensorSource:
        """One expert's weight, `[outputs, inputs]`."""


class TensorPart(TensorSource):
    """A part of a tensor that is read as a whole and cut. Where `read` maps a file, only the part's pages are used."""

    def __init__(self, source: TensorSource, shard: Shard) -> None:
        self.source, self.shard = source, shard
        self.shape = shard.shape_of(source.shape)

    def read(self) -> Tensor:
        return cut(self.source.read(), self.shard)

    def stored(self) -> StoredRows | None:
        rows = self.source.stored()
        if rows is None or rows.data.is_floating_point():
            return None if rows is None else of_floats(cut(rows.data, self.shard))
        if self.shard.columns is not None:  # where blocks of them begin is for the source to know
            return None
        return replace(rows, data=cut(rows.data, self.shard))


def cut(tensor: Tensor, shard: Shard) -> Tensor:
    """What a shard takes of a tensor: a view where that is one range of rows and of columns. No more is looked at."""
    parts = [tensor] if shard.rows is None else [tensor.narrow(0, first, end - first) for first, end in shard.rows]
    if shard.columns is not None:
        parts = [_joined([part.narrow(1, first, end - first) for first, end in shard.columns], 1) for part in parts]
    return _joined(parts, 0)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class TransformedTensor(TensorSource):
    """A tensor that is changed as it is read. Raises RuntimeError where its shape does not fit the change."""

    def __init__(self, source: TensorSource, transform: Transform) -> None:
        self.source, self.transform = source, transform
        self.shape = tuple(transform(torch.empty(source.shape, device="meta")).shape)

    def read(self) -> Tensor:
        return self.transform(self.source.read())

    def _whole(self) -> tuple[TensorSource, Transform]:
        """What the tensor is made of, and all that is done to it: a change may take back another."""
        source, change = self.source, self.transform
        while isinstance(source, TransformedTensor):
            change = partial(_both, source.transform, change)
            source = source.source
        return source, change

    def stored(self) -> StoredRows | None:
        source, change = self._whole()
        rows = source.stored()
        if rows is None or rows.data.is_floating_point():
            return None if rows is None else of_floats(change(rows.data))
        order = row_order(change, source.shape)
        if order is None or torch.equal(order, torch.arange(len(order))):
            return None if order is None else rows
        return replace(rows, data=rows.data[order])

    def part(self, shard: Shard) -> TensorSource:
        source, change = self._whole()
        if (order := row_order(change, source.shape)) is not None:
            ranges, places = _needed(order, shard.rows)
            return TransformedTensor(source.part(Shard(ranges, shard.columns)), lambda w: w[places])
        if (order := _column_order(self.transform, self.source.shape)) is not None:
            ranges, places = _needed(order, shard.rows)
            return TransformedTensor(self.source.part(Shard(shard.columns, ranges)), lambda w: w.t()[places])
        return TensorPart(self, shard)


def _both(first: Transform, second: Transform, tensor: Tensor) -> Tensor:
    return second(first(tensor))


class JoinedTensor(TensorSource):
    """A tensor that is made of several as it is read. Raises RuntimeError where their shapes do not fit each other."""

    def __init__(self, sources: Sequence[TensorSource], join: Callable[..., Tensor]) -> None:
        self.sources, self.join = sources, join
        self.shape = tuple(join(*(torch.empty(source.shape, device="meta") for source in sources)).shape)

    def read(self) -> Tensor:
        return self.join(*(source.read() for source in self.sources))


def _needed(order: Tensor, rows: Ranges | None) -> tuple[Ranges, Tensor]:
    """Of rows of a changed tensor, which each were `order` before: the ranges that they are in, and where in those."""
    wanted = order if rows is None else cut(order, Shard(rows))
    needed, places = torch.unique(wanted, return_inverse=True)
    if not len(needed):
        return ((0, 0),), places
    breaks = [0, *(torch.nonzero(needed.diff() != 1).flatten() + 1).tolist(), len(needed)]
    return tuple((int(needed[a]), int(needed[b - 1]) + 1) for a, b in pairwise(breaks)), places


def _column_order(transform: Transform, shape: tuple[int, ...]) -> Tensor | None:
    """Which column each row of a changed `[width, rows]` tensor was, where the change turns it round."""
    return row_order(lambda w: transform(w.t()), shape[::-1]) if len(shape) == 2 else None


def row_order(transform: Transform, shape: tuple[int, ...]) -> Tensor | None:
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
