"""Where weights meet rows: Linear, and what stands beside it for experts. Weights of heads are in `head_linear`.

Nobody else holds a weight that rows are multiplied with. Each product is told the batch that its rows are of.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from octavo.ops import AdapterTable, Backend, Gate, LinearUpdate, LowRank, PackedLinear, RowAdapters
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.split import Range, Split
from octavo.parts.weight_adapter import AdapterOptions, WeightAdapter
from octavo.parts.weight_slots import Ranges, Role, Shard, WeightSlot, ranges_size

ROWS_AT_ONCE = 4096
"""Of a weight, that are read to know their lengths."""


def _within(segments: Mapping[str, int], ranges: Mapping[str, Ranges]) -> Ranges:
    """Ranges of segments that lie one after the other, as such of the whole."""
    firsts = dict(zip(segments, itertools.accumulate(segments.values(), initial=0), strict=False))
    return tuple((firsts[name] + first, firsts[name] + end) for name, own in ranges.items() for first, end in own)


def _as_ranges(ranges: Range | Ranges) -> Ranges:
    return (ranges,) if isinstance(ranges[0], int) else ranges


@dataclass(frozen=True, eq=False)
class LinearChange:
    """What an adapter makes of a Linear."""

    update: object | None
    """For an AdapterTable."""
    weight: PackedLinear | None = None
    """In place of the Linear's own, which may have more outputs than it."""
    bias: Tensor | None = None
    """With that weight, where it has more outputs; else the bias is the Linear's, and what is added to that."""
    dtype: torch.dtype = torch.float32
    """Of that weight."""
    more_outputs: int = 0
    """How many more than the Linear it has, on all ranks together."""


class Linear(nn.Module):
    """`x @ weight.T + bias` on `[rows, inputs]`.

    Args:
        inputs: values of a row.
        outputs: values of a result, or named segments of it: `{"q": 64, "k": 32, "v": 32}` merges three published
            layers into one product, and each segment is filled by its own name.
        bias: whether there is one, or the names of the segments that have one. It is held in float32.
        exact: the weight is never rounded to fewer bits than it is stored in (routers, heads of scores).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | Mapping[str, int],
        bias: bool | Collection[str] = False,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.segments = dict(outputs) if isinstance(outputs, Mapping) else {}
        self.inputs = inputs
        self.outputs = sum(self.segments.values()) if isinstance(outputs, Mapping) else outputs
        self.has_bias, self.exact = bool(bias), exact
        self.share = 1.0
        """As of WeightSlot."""
        named = self.segments if isinstance(bias, bool) else bias
        self.biased = {name: size for name, size in self.segments.items() if name in named}
        """The segments that have a bias, and how much of it this rank has; the others' is zero."""
        self._own_segments = self.segments
        """How much this rank has of each."""
        self.bias: nn.Parameter | None = None
        self._packed: PackedLinear | None = None
        self._table: AdapterTable | None = None
        self._expert: int | None = None
        """Its number, where the table is all experts'."""
        self._in_place: dict[int, LinearChange] = {}
        """By slot: weights that are computed with instead."""
        self.slot_of_all: int | None = None
        """The slot of the adapter that all rows have now, whatever their batch says."""
        self.shard: Shard | None = None
        """What this rank has of the weight, whose sizes `inputs`, `outputs` and `segments` remain; None for all."""
        self._bias_shard: Shard | None = None
        self._widths: tuple[int, ...] | None = None
        """Of all ranks' results, where they are gathered."""
        self._is_summed = False
        self._meet: Callable[[Tensor], Tensor] | None = None
        """What makes the result of this rank's and the others'."""

    @property
    def own_outputs(self) -> int:
        """How many of the outputs this rank has."""
        return self.outputs if self.shard is None or self.shard.rows is None else ranges_size(self.shard.rows)

    def split_outputs(self, ranges: Range | Mapping[str, Range | Ranges], widths: Sequence[int] | None = None) -> None:
        """Leave some of the outputs, which is what this rank then gives.

        Args:
            ranges: of the outputs; of a weight with segments, of each segment's one or several.
            widths: how many outputs each rank has, where results are to be gathered: all ranks give the whole one.
        """
        assert self.shard is None, "a weight is split once"
        if isinstance(ranges, Mapping):
            assert list(ranges) == list(self.segments)
            each = {name: _as_ranges(own) for name, own in ranges.items()}
            self.shard = Shard(rows=_within(self.segments, each))
            own = {name: each[name] for name in self.biased}
            self._bias_shard = Shard(rows=_within(self.biased, own))
            self.biased = {name: ranges_size(of) for name, of in own.items()}
            self._own_segments = {name: ranges_size(of) for name, of in each.items()}
        else:
            assert not self.segments
            self.shard = self._bias_shard = Shard(rows=(ranges,))
        self._widths = None if widths is None else tuple(widths)

    def split_gathered(self, split: Split) -> None:
        """Leave some of the outputs, which are gathered: all ranks give the whole result."""
        self.split_outputs(split.share(self.outputs), split.widths(self.outputs))

    def split_inputs(self, split: Split, own: Range, is_summed: bool = True) -> None:
        """Leave some of the inputs: this rank gives terms of the sum, and the first rank the bias.

        Args:
            own: of the inputs.
            is_summed: whether the ranks' results are summed; otherwise that is for the caller to do.
        """
        assert self.shard is None, "a weight is split once"
        self.shard, self._is_summed = Shard(columns=(own,)), is_summed
        self._bias_shard = None if split.rank == 0 else Shard(rows=((0, 0),))

    def weight_slots(self) -> dict[str, WeightSlot]:
        """The weight, packed, and the bias."""
        role = Role.EXACT if self.exact else Role.MULTIPLIED
        shape = (self.outputs, self.inputs)
        slots = {"weight": WeightSlot(shape, role, self.load, self.segments, shard=self.shard, share=self.share)}
        if self.has_bias:
            biased = {name: size for name, size in self.segments.items() if name in self.biased}
            size = sum(biased.values()) if biased else self.outputs
            slots["bias"] = WeightSlot((size,), Role.FLOAT32, self._load_bias, biased, shard=self._bias_shard)
        return slots

    def load(self, weight: Tensor | PackedLinear) -> None:
        """Take the weight, packed."""
        assert not isinstance(weight, Tensor)
        self._packed = weight

    def _load_bias(self, bias: Tensor | PackedLinear) -> None:
        assert isinstance(bias, Tensor)
        if not len(bias):  # which the first rank adds
            return
        if len(self.biased) < len(self.segments):
            given = iter(torch.split(bias, list(self.biased.values())))
            zeros = {name: bias.new_zeros(size) for name, size in self._own_segments.items()}
            bias = torch.cat([next(given) if name in self.biased else zeros[name] for name in self.segments])
        self.bias = nn.Parameter(bias, requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        self._gated_linear, self._gated = backend.gated_linear, backend.gated
        self._all_gather = backend.all_gather
        if self._widths is not None:
            self._meet = partial(backend.all_gather, widths=self._widths)
        elif self._is_summed:
            self._meet = backend.all_reduce

    def forward(self, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
        """`x` `[rows, inputs]`, rows of `batch`, to `[rows, outputs]`; where it is split, this rank's of these."""
        assert self._packed is not None, "weights are loaded before anything is computed"
        y = self._packed(x, self.bias)
        if (adapters := self._adapters(x, batch)) is not None:
            self._replace(x, y, batch)
            adapters.table.apply(x, y, adapters.slots)
        return y if self._meet is None else self._meet(y)

    def gated(self, x: Tensor, batch: Batch | SpanBatch, gate: Gate) -> Tensor:
        """The result's halves, gate and up, made one by `gate`: `[rows, outputs / 2]`."""
        assert self._packed is not None, "weights are loaded before anything is computed"
        adapters = self._adapters(x, batch)
        out = self._gated_linear(self._packed, x, self.bias, gate, adapters)
        for slot in self._in_place if adapters is not None else ():
            if (rows := self._rows_of(slot, x, batch)) is not None and adapters is not None:
                y = self.replaced(x[rows], slot).to(x.dtype)
                adapters.table.apply(x[rows], y, adapters.slots[rows])
                out[rows] = self._gated(y, gate)
        return out

    def _adapters(self, x: Tensor, batch: Batch | SpanBatch) -> RowAdapters | None:
        """The adapters of a step's rows, if they may change this."""
        if self._table is None:
            return None
        if self.slot_of_all is not None:
            return RowAdapters(self._table, torch.full((x.shape[0],), self.slot_of_all))
        slots = batch.adapter_slots(x.shape[0])
        return None if slots is None else RowAdapters(self._table, slots)

    def _replace(self, x: Tensor, y: Tensor, batch: Batch | SpanBatch) -> None:
        """Compute the rows whose adapters have weights in place of this one."""
        for slot in self._in_place:
            if (rows := self._rows_of(slot, x, batch)) is not None:
                y[rows] = self.replaced(x[rows], slot)[:, : self.own_outputs].to(y.dtype)

    def _rows_of(self, slot: int, x: Tensor, batch: Batch | SpanBatch) -> Tensor | None:
        """The rows that have a slot's adapter; None if none."""
        if self.slot_of_all is None:
            return batch.rows_of_slot(slot, x.shape[0])
        return torch.arange(x.shape[0]) if slot == self.slot_of_all else None

    def replaced(self, x: Tensor, slot: int) -> Tensor:
        """What the weight that a slot's adapter has in place of this one gives, with as many outputs as that has."""
        change = self._in_place[slot]
        assert change.weight is not None
        return change.weight(x.to(change.dtype), self.bias if change.bias is None else change.bias)

    def more_outputs(self, slot: int) -> bool:
        """Whether a slot's adapter has a weight with more outputs in place of this one."""
        return slot in self._in_place and self._in_place[slot].more_outputs > 0

    def with_more_outputs(self, x: Tensor, slot: int) -> Tensor:
        """`replaced`, on all ranks, for an adapter with more outputs, which the last rank has."""
        y = self.replaced(x, slot)
        if self._widths is None:
            return y
        *widths, last = self._widths
        return self._all_gather(y, (*widths, last + self._in_place[slot].more_outputs))

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if self._table is None:
            self._table = backend.adapter_table(slots)

    def share_table(self, table: AdapterTable, expert: int) -> None:
        """Have adapters change the results of one of several experts, whose products are computed together."""
        self._table, self._expert = table, expert

    def put_adapter(self, slot: int, change: object | None) -> None:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        assert self._table is not None
        change = cast(LinearChange | None, change)
        self._table.put(slot, None if change is None else change.update, self._expert or 0)
        self._in_place.pop(slot, None)
        if change is not None and change.weight is not None:
            self._in_place[slot] = change

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> LinearChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if adapter.tokens is not None:
            raise ValueError("rows of tokens, which only a token table has")
        if adapter.weight is not None and (more := adapter.more_rows or len(adapter.weight) - self.own_outputs) > 0:
            return self._with_more_outputs(adapter, adapter.weight, more, options)
        magnitude, bias = self._magnitude(adapter), self._added_bias(adapter)
        low_rank = adapter.low_rank
        if magnitude is not None:
            low_rank = [
                replace(part, b=part.b * magnitude[part.first : part.first + len(part.b), None]) for part in low_rank
            ]
            if self.bias is not None and self._expert is None:  # the results have it already
                own = self.bias.data.cpu() * (1 - magnitude)
                bias = own if bias is None else own + bias
        backend, update = options.backend, None
        if low_rank or magnitude is not None or bias is not None:
            to = [None if t is None else t.to(backend.device) for t in (magnitude, bias)]
            parts = tuple(LowRank(p.first, p.a.to(backend.device), p.b.to(backend.device)) for p in low_rank)
            update = backend.pack_update(LinearUpdate(parts, *to), options.dtype)
        weight = None if adapter.weight is None else self._completed(adapter.weight)
        if weight is None:
            return LinearChange(update)
        if self._expert is not None:
            raise ValueError("a whole weight of an expert")
        packed = backend.linear(weight.to(backend.device, options.dtype))
        return LinearChange(update, packed, dtype=options.dtype)

    def _with_more_outputs(
        self, adapter: WeightAdapter, weight: Tensor, more: int, options: AdapterOptions
    ) -> LinearChange:
        """What there is of an adapter that has more outputs than the weight."""
        if adapter.low_rank or adapter.lengths is not None:
            raise ValueError("more outputs, and matrices of low rank beside them")
        bias = torch.zeros(len(weight))
        if self.bias is not None:
            bias[: self.own_outputs] = self.bias.data.cpu()
        if adapter.bias is not None:
            bias = torch.where(adapter.bias.isnan(), bias, adapter.bias)
        if adapter.added_bias is not None:
            bias = bias + adapter.added_bias
        self._completed(weight)
        device = options.backend.device
        packed = options.backend.linear(weight.to(device, options.dtype))
        return LinearChange(None, packed, bias.to(device) if bias.any() else None, options.dtype, more)

    def _completed(self, weight: Tensor) -> Tensor | None:
        """A weight in place of this one, its own rows where it has NaN; None where it is the same."""
        assert self._packed is not None
        is_same = len(weight) == self.own_outputs
        for first in range(0, self.own_outputs, ROWS_AT_ONCE):
            given = weight[first : min(first + ROWS_AT_ONCE, self.own_outputs)]
            own = self._packed.rows(torch.arange(first, first + len(given)), torch.float32).cpu()
            given.copy_(torch.where(given.isnan(), own, given))
            is_same = is_same and bool(torch.equal(given, own))
        return None if is_same else weight

    def _magnitude(self, adapter: WeightAdapter) -> Tensor | None:
        """[outputs] what DoRA multiplies results with."""
        if adapter.lengths is None:
            return adapter.magnitude
        assert self._packed is not None
        return magnitude_of(self._packed, self.own_outputs, adapter)

    def _added_bias(self, adapter: WeightAdapter) -> Tensor | None:
        """[outputs] what an adapter adds to the bias."""
        added = adapter.added_bias
        if adapter.bias is not None:
            own = torch.zeros(self.own_outputs) if self.bias is None else self.bias.data.cpu()
            more = torch.where(adapter.bias.isnan(), 0.0, adapter.bias - own)
            added = more if added is None else added + more
        return added


def magnitude_of(weight: PackedLinear, outputs: int, adapter: WeightAdapter) -> Tensor:
    """[outputs] DoRA's lengths over those of a weight's rows with what is added to them."""
    assert adapter.lengths is not None
    factors = []
    for first in range(0, outputs, ROWS_AT_ONCE):
        rows = weight.rows(torch.arange(first, min(first + ROWS_AT_ONCE, outputs)), torch.float32).cpu()
        for part in adapter.low_rank:
            begin, end = max(first, part.first), min(first + len(rows), part.first + len(part.b))
            if begin < end:
                rows[begin - first : end - first] += part.b[begin - part.first : end - part.first] @ part.a
        wanted = adapter.lengths[first : first + len(rows)]
        factors.append(torch.where(wanted.isnan(), 1.0, wanted / rows.norm(dim=1)))
    return torch.cat(factors)


class ExpertLinear:
    """One layer of all experts: each row is multiplied with the weights of those that were chosen for it.

    Args:
        experts: their Linears, loaded and alike in all but their weights.
        backend: what computes.
    """

    def __init__(self, experts: Sequence[Linear], backend: Backend) -> None:
        packed = [e._packed for e in experts if e._packed is not None]
        assert len(packed) == len(experts), "weights are loaded before what is made of them"
        self._packed = backend.experts(packed)
        self._add, self._table_rows = backend.add, backend.table_rows
        self._experts, self._table = list(experts), cast(AdapterTable | None, None)
        biases = [e.bias for e in experts if e.bias is not None]
        self._bias = torch.stack([bias.data for bias in biases]) if biases else None
        """[experts, outputs]"""

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """Have adapters of the experts' Linears change what comes of this."""
        self._table = backend.adapter_table(slots, len(self._experts))
        for number, expert in enumerate(self._experts):
            expert.share_table(self._table, number)

    def __call__(self, x: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
        """A result for each choice, `[rows * choices, outputs]`, in the order of `chosen`.

        Args:
            x: [rows, inputs], or [rows * choices, inputs] where each choice has a row of its own.
            chosen: [rows, choices] int64 numbers of experts.
            batch: what the rows are of.
        """
        y = self._packed(x, chosen)
        slots = None if self._table is None else batch.adapter_slots(chosen.shape[0])
        if self._table is not None and slots is not None:
            self._table.apply(x, y, slots, chosen)
        return y if self._bias is None else self._add(y, self._table_rows(self._bias_as(y.dtype), chosen.flatten()))

    def _bias_as(self, dtype: torch.dtype) -> Tensor:
        """In the numbers of what it is added to."""
        assert self._bias is not None
        if self._bias.dtype != dtype:
            self._bias = self._bias.to(dtype)
        return self._bias
