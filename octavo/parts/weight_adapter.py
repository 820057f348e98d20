"""Adapters (LoRA, Hu et al. 2021): what they say of one weight, and how parts take them.

A part that holds a weight makes of a WeightAdapter what it computes with (`adapter_change`, in any thread), and has it
for the rows of a slot's adapter once it is put there (`put_adapter`, between steps). No part knows adapters' files.
"""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from octavo.ops import Backend, LowRank

T = TypeVar("T")


@dataclass(eq=False)
class WeightAdapter:
    """What an adapter says of one weight `[outputs, inputs]` and its bias, laid out as the model has them.

    All tensors are float32 on the processor.
    """

    low_rank: list[LowRank] = field(default_factory=list)
    """Added to the weight: `b @ a` to rows `first` on. Of a token table, rows are tokens."""
    lengths: Tensor | None = None
    """[outputs], of a token table [inputs]: DoRA's, of the changed weight's rows (of a table: columns); NaN where they
    stay as they come."""
    magnitude: Tensor | None = None
    """The same over the lengths that they come with, where this rank has too little of the weight to know these."""
    bias: Tensor | None = None
    """[outputs] in place of the bias; NaN where it stays."""
    added_bias: Tensor | None = None
    """[outputs], added to the bias."""
    weight: Tensor | None = None
    """[rows, inputs] in place of the weight. Of a head or a token table it may have more rows than the model's."""
    more_rows: int = 0
    """How many more it has, this rank's and the others', where several ranks have the rows."""
    tokens: tuple[Tensor, Tensor] | None = None
    """Ids [count] int64 of a token table's rows, and [count, inputs] what is in their place."""


@dataclass(frozen=True)
class AdapterOptions:
    """What parts need for changes."""

    backend: Backend
    dtype: torch.dtype
    """Of an adapter's matrices."""


@runtime_checkable
class TakesAdapters(Protocol):
    """A part whose weight adapters may change."""

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """Have adapters in so many slots from now on. All weights are loaded."""
        ...

    def adapter_change(self, adapter: WeightAdapter, options: AdapterOptions) -> object:
        """What the part computes with for the adapter. Raises ValueError for what it cannot do, and says what."""
        ...

    def put_adapter(self, slot: int, change: object | None) -> None:
        """Have a slot's rows computed with what `adapter_change` has made; None for no change."""
        ...


class ChangedBySlot(nn.Module, Generic[T]):
    """A part that computes the rows of adapters by themselves, with what it has made of each."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: dict[int, T] = {}
        """Adapters', by slot."""

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """See TakesAdapters."""

    def put_adapter(self, slot: int, change: object | None) -> None:
        """See TakesAdapters."""
        self._changes.pop(slot, None)
        if change is not None:
            self._changes[slot] = cast(T, change)
