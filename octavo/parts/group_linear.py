"""A weight whose outputs are in groups, each of which reads its own part of a row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from octavo.ops import AdapterTable, Backend, LinearUpdate, LowRank, PackedHeads
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.linear_layer import Linear, LinearChange
from octavo.parts.split import Split
from octavo.parts.weight_adapter import AdapterOptions, WeightAdapter
from octavo.parts.weight_slots import Shard


@dataclass(frozen=True, eq=False)
class GroupChange(LinearChange):
    """What an adapter makes of a GroupLinear."""

    updates: Sequence[object | None] = ()
    """For an AdapterTable, of each group."""


FIRST_ROWS = 256
"""For how many rows groups are numbered at first: a recorded step has fewer, and makes no tensor of its own."""


class GroupLinear(Linear):
    """Group g of the outputs is `x[g] @ weight[g].T`, of rows whose parts lie side by side (DeepSeek-V4).

    Args:
        inputs: values of a row's part.
        outputs: of all groups, one after the other, which is how the published weight `[outputs, inputs]` has them.
        groups: how many.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__(inputs, outputs)
        self.groups = groups
        self._numbers = torch.empty(0, groups, dtype=torch.int64, device="cpu")
        """Of the groups, for each row."""

    def split_parts(self, split: Split) -> tuple[int, int]:
        """Leave what one rank's parts of rows need: its groups, or of one group its inputs. Returns the groups' range.

        Raises ValueError where neither groups nor, of more ranks, inputs can be divided.
        """
        each = self.outputs // self.groups
        if split.size <= self.groups:
            first, end = split.even(self.groups, "groups of outputs")
            self.shard, self.groups = Shard(rows=((first * each, end * each),)), end - first
            return first, end
        shared = split.size // self.groups
        if split.size % self.groups or self.inputs % shared:
            raise ValueError(f"{self.groups} groups of outputs cannot be divided among {split.size} ranks")
        group, part = divmod(split.rank, shared)
        size = self.inputs // shared
        columns = ((part * size, part * size + size),)
        self.shard, self.groups = Shard(rows=((group * each, group * each + each),), columns=columns), 1
        return group, group + 1

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        assert self._packed is not None
        self._backend, self._by_group = backend, backend.group_linear(self._packed, self.groups)
        self._replaced: dict[int, PackedHeads] = {}

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        """`x` `[rows, groups * inputs]` to `[rows, outputs]`; where it is split, of this rank's groups."""
        rows = x.shape[0]
        parts = x.view(rows, self.groups, -1)
        y = self._by_group(parts, x.dtype)
        slots = None if self._table is None else batch.adapter_slots(rows)
        if self._table is not None and slots is not None:
            for slot, weight in self._replaced.items():
                if (places := batch.rows_of_slot(slot, rows)) is not None:
                    y[places] = weight(parts[places].float(), y.dtype)
            self._table.apply(parts.flatten(0, 1), y.flatten(0, 1), slots, self._groups_of(rows))
        return y.flatten(1)

    def _groups_of(self, rows: int) -> Tensor:
        """`[rows, groups]`: the number of each."""
        if len(self._numbers) < rows:
            self._numbers = torch.arange(self.groups, device=self._backend.device).repeat(2 * rows, 1)
        return self._numbers[:rows]

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        self._table = cast(AdapterTable | None, backend.adapter_table(slots, self.groups))
        self._numbers = torch.arange(self.groups, device=backend.device).repeat(FIRST_ROWS, 1)
        self._first_numbers = self._numbers  # which recordings go on reading

    def put_adapter(self, slot: int, change: object | None) -> None:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        assert self._table is not None
        change = cast(GroupChange | None, change)
        for group in range(self.groups):
            self._table.put(slot, None if change is None else change.updates[group], group)
        self._replaced.pop(slot, None)
        if change is not None and change.weight is not None:
            self._replaced[slot] = self._backend.group_linear(change.weight, self.groups)

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> GroupChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if adapter.bias is not None or adapter.added_bias is not None:
            raise ValueError("a bias, of a layer without")
        whole = super().adapter_change(replace(adapter, low_rank=[], lengths=None, magnitude=None), options)
        magnitude = self._magnitude(adapter)
        each = self.own_outputs // self.groups
        updates = [self._update(adapter, magnitude, g * each, g * each + each, options) for g in range(self.groups)]
        dtype = torch.float32 if whole.weight is None else whole.dtype
        return GroupChange(None, whole.weight, dtype=dtype, updates=updates)

    def _update(
        self, adapter: WeightAdapter, magnitude: Tensor | None, first: int, end: int, options: AdapterOptions
    ) -> object | None:
        """What an adapter makes of outputs `first` to `end`."""
        device, parts = options.backend.device, list[LowRank]()
        own = None if magnitude is None else magnitude[first:end].contiguous()
        for part in adapter.low_rank:
            begin, stop = max(first, part.first), min(end, part.first + len(part.b))
            if begin < stop:
                b = part.b[begin - part.first : stop - part.first]
                b = b if magnitude is None else b * magnitude[begin:stop, None]
                parts.append(LowRank(begin - first, part.a.to(device), b.contiguous().to(device)))
        if not parts and own is None:
            return None
        update = LinearUpdate(tuple(parts), None if own is None else own.to(device))
        return options.backend.pack_update(update, options.dtype)
