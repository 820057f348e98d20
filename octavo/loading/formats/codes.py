"""Quantized weights as their numbers, whatever the format: codes, what they mean, and scales of groups of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.loading.tensor_source import cut
from octavo.parts.weight_slots import Shard

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the codes of e2m1 mean (Open Compute Project 2023)."""

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""What those of bitsandbytes' normal floats mean (Dettmers et al. 2023), in float32."""


_OF_12 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
BNB_FP4 = tuple(float(v) for v in torch.tensor([*_OF_12, *(-v for v in _OF_12)], dtype=torch.float32) / 12.0)
"""What those of its floats of 4 bits mean, in float32."""


@dataclass(frozen=True)
class Codes:
    """A weight `[outputs, inputs]`, each value of which is `(number - zero) * scale + added`."""

    numbers: Tensor
    """[outputs, inputs] numbers of any dtype, or with a `table` uint8 places in it."""
    scales: Tensor
    """[blocks of outputs, groups of inputs] float32"""
    group: int
    """Inputs that share a scale, unless `groups` says which do."""
    rows: int = 1
    """Outputs that share a scale."""
    zeros: Tensor | None = None
    """[outputs, groups] of any dtype; None for zero."""
    table: Tensor | None = None
    """[codes] float32: what they mean."""
    added: Tensor | None = None
    """[outputs, groups] float32, added to the products."""
    factor: float | None = None
    """What all scales were multiplied with, where they are 8-bit floats without it."""
    groups: Tensor | None = None
    """[inputs] int64: the group of each input, where they do not follow each other."""

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.numbers.shape
        return outputs, inputs

    def floats(self) -> Tensor:
        """[outputs, inputs] float32"""
        numbers = self.numbers.float() if self.table is None else self.table[self.numbers.int()]
        if self.zeros is not None:
            numbers = numbers - self._by_input(self.zeros.float())
        values = numbers.mul_(self._by_input(self.row_scales()))
        return values if self.added is None else values.add_(self._by_input(self.added))

    def row_scales(self) -> Tensor:
        """[outputs, groups] float32"""
        outputs = len(self.numbers)
        if self.rows == 1:
            return self.scales
        return self.scales.expand(outputs, -1) if len(self.scales) == 1 else self._by_block(outputs)

    def _by_block(self, outputs: int) -> Tensor:
        return self.scales.repeat_interleave(self.rows, 0)[:outputs]

    def _by_input(self, of_groups: Tensor) -> Tensor:
        """[outputs, groups] values as those of inputs; a view that broadcasts where there is one group."""
        if self.groups is not None:
            return of_groups[:, self.groups]
        if of_groups.shape[1] == 1:
            return of_groups
        return of_groups.repeat_interleave(self.group, 1)[:, : self.numbers.shape[1]]

    def part(self, shard: Shard) -> "Codes":
        """What a shard takes."""
        of_rows, columns = Shard(rows=shard.rows), Shard(rows=shard.columns)
        part = replace(self, numbers=cut(self.numbers, shard), rows=1)
        part = part._changed(lambda values: cut(values, of_rows), self.row_scales())
        if part.scales.shape[1] == 1:
            return replace(part, groups=None)
        if shard.columns is None:
            return part
        if self.groups is None and all(n % self.group == 0 for ranges in shard.columns for n in ranges):
            inside = tuple((first // self.group, end // self.group) for first, end in shard.columns)
            return part._changed(lambda values: cut(values, Shard(columns=inside)), part.scales)
        groups = torch.arange(self.numbers.shape[1]) // self.group if self.groups is None else self.groups
        return replace(part, groups=cut(groups, columns))

    def in_order(self) -> "tuple[Codes | None, Tensor]":
        """With each group's inputs beside each other, and which input each of them is; None where groups differ in
        size."""
        assert self.groups is not None
        order = torch.argsort(self.groups, stable=True)
        count = self.scales.shape[1]
        sizes = torch.bincount(self.groups, minlength=count)
        size = int(sizes[0])
        if not size or not bool((sizes[:-1] == size).all()) or int(sizes[-1]) > size:
            return None, order
        return replace(self, numbers=self.numbers[:, order], group=size, groups=None), order

    def _changed(self, change: Callable[[Tensor], Tensor], scales: Tensor) -> "Codes":
        """With what a change makes of the groups' values."""
        zeros, added = (None if values is None else change(values) for values in (self.zeros, self.added))
        return replace(self, scales=change(scales), zeros=zeros, added=added)
