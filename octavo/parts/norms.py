"""Norms. Their weights are few, and kept in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from octavo.ops import Backend, NormSpec
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.split import Range
from octavo.parts.weight_adapter import AdapterOptions, ChangedBySlot, WeightAdapter
from octavo.parts.weight_slots import Shard, shard_parameter


@dataclass(frozen=True, eq=False)
class NormChange:
    """What an adapter has in place of a norm's weight and bias, in float32; None where there is none."""

    weight: Tensor | None
    bias: Tensor | None


class Norm(ChangedBySlot[NormChange]):
    """What can also be told to a backend as data, for norms of queries and keys."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    size = 0
    """Values of a row."""
    offset = 0.0
    eps: float
    compute: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    """Of rows, weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.slot_of_all: int | None = None
        """The slot of the adapter that all rows have now."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[rows, size]`, normed; where rows may have adapters, see `norm_rows`."""
        if self.slot_of_all in self._changes:
            change = self._changes[self.slot_of_all]
            return self.compute(x, change.weight, change.bias)
        return self.compute(x, self.weight, self.bias)

    def of_adapters(self, x: Tensor, y: Tensor, batch: Batch | SpanBatch) -> Tensor:
        """`y`, the normed `x`, with the rows of adapters that have another norm in their places."""
        for slot in self._changes:
            if (rows := batch.rows_of_slot(slot, x.shape[0])) is not None:
                y[rows] = self.of_slot(x[rows], slot)
        return y

    def of_slot(self, x: Tensor, slot: int) -> Tensor:
        """`x` `[rows, size]`, normed as the adapter in a slot has it."""
        change = self._changes[slot]
        return self.compute(x, change.weight, change.bias)

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> NormChange:
        """See octavo.parts.weight_adapter.TakesAdapters."""
        if adapter.lengths is not None or adapter.tokens is not None:
            raise ValueError("more than a norm's weight and bias")
        weight, bias = self.weight, None if self.bias is None else self.bias.data.clone()
        changed = None if weight is None else weight.data
        if adapter.weight is not None:
            changed = adapter.weight.to(options.backend.device) + self.offset
        for part in adapter.low_rank:  # of norms that have a row of weights for each head
            if changed is None:
                raise ValueError("a norm without a weight")
            changed = changed + (part.b @ part.a).to(changed.device)
        for given, is_whole in ((adapter.bias, True), (adapter.added_bias, False)):
            if given is not None:
                given = given.to(options.backend.device)
                before = torch.zeros_like(given) if bias is None else bias
                bias = torch.where(given.isnan(), before, given) if is_whole else before + given
        return NormChange(changed, bias)

    @property
    def adapted_slots(self) -> set[int]:
        """The slots of adapters that have another norm."""
        return set(self._changes)

    def split_heads(self, heads: Range) -> None:
        """Leave what the heads of these numbers need, of a norm of each head's queries or keys by itself."""

    def spec(self, slot: int | None = None) -> NormSpec:
        """As data; as the adapter in a slot has it."""
        change = self._changes.get(slot) if slot is not None else None
        if change is None:
            change = NormChange(self.weight, self.bias)
        return self.as_data(change.weight, change.bias)

    def as_data(self, weight: Tensor | None, bias: Tensor | None) -> NormSpec:
        """A norm like this of other values."""
        return NormSpec("layer", weight, bias, self.eps)


def norm_rows(norm: nn.Module, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
    """`norm(x)` of a step's rows `[rows, size]`, whose adapters may have other norms."""
    y: Tensor = norm(x)
    return norm.of_adapters(x, y, batch) if isinstance(norm, Norm) else y


def norm_each(norm: Norm, x: Tensor, batch: Batch | SpanBatch) -> Tensor:
    """`x` `[rows, count * size]`, each `size` values of a row normed by themselves."""
    rows = x.shape[0]
    normed: Tensor = norm(x.reshape(-1, norm.size)).view(rows, -1)
    for slot in norm.adapted_slots:
        if (places := batch.rows_of_slot(slot, rows)) is not None:
            normed[places] = norm.of_slot(x[places].view(-1, norm.size), slot).view(len(places), -1)
    return normed


class RMSNorm(Norm):
    """Root mean square norm. `offset` is added to the weight (1 in Gemma, whose weights are around 0)."""

    float32_parameters = True

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.bias = None
        self.size, self.eps = size, eps
        self.offset = offset

    def prepare(self, backend: Backend) -> None:
        rms_norm = backend.rms_norm
        self.compute = lambda x, weight, bias: rms_norm(x, cast(Tensor, weight), self.eps)
        if self.offset:
            assert self.weight is not None
            self.weight.data = self.weight.data + self.offset

    def as_data(self, weight: Tensor | None, bias: Tensor | None) -> NormSpec:
        return NormSpec("rms", weight, None, self.eps)


class PlainRMSNorm(Norm):
    """Root mean square norm without a weight, of heads' queries, keys or values (Gemma 3n, Llama 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = self.bias = None
        self.size, self.eps = size, eps

    def prepare(self, backend: Backend) -> None:
        ones = torch.ones(self.size, device=backend.device)
        self.compute = lambda x, weight, bias: backend.rms_norm(x, ones, self.eps)

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> NormChange:
        raise ValueError("a norm without a weight")

    def as_data(self, weight: Tensor | None, bias: Tensor | None) -> NormSpec:
        return NormSpec("rms", None, None, self.eps)


class LayerNorm(Norm):
    """Mean and variance norm, with or without weight and bias. `offset` is added to the weight (Nemotron's is 1)."""

    float32_parameters = True

    def __init__(self, size: int, eps: float, weight: bool = True, bias: bool = True, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False) if weight else None
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if bias else None
        self.eps = eps
        self.offset = offset

    def prepare(self, backend: Backend) -> None:
        layer_norm = backend.layer_norm
        self.compute = lambda x, weight, bias: layer_norm(x, weight, bias, self.eps)
        if self.offset and self.weight is not None:
            self.weight.data = self.weight.data + self.offset


class HeadNorm(Norm):
    """A layer norm of each head's queries or keys, with weights `[heads, head_dim]` (Command-R+), and such biases."""

    float32_parameters = True

    def __init__(self, num_heads: int, head_dim: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False) if bias else None
        self.eps = eps

    def split_heads(self, heads: Range) -> None:
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                shard_parameter(self, name, Shard(rows=(heads,)))
