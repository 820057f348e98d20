"""One step's input, handed to every part as an explicit argument."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from octavo.ops import AttentionPlan, KVCache, RecurrentPlan

T = TypeVar("T")


@dataclass(slots=True)
class PagedView:
    """A part's cache and where this step's tokens stand in it."""

    cache: KVCache
    plan: AttentionPlan


@dataclass(slots=True)
class RecurrentView:
    """A part's states and which of them this step's tokens go on from."""

    tensors: dict[str, Tensor]
    """Name to [slots, ...]. Zeroed by the executor when a request begins."""
    plan: RecurrentPlan


StateView = PagedView | RecurrentView


@dataclass
class PlacedRows:
    """Rows of features, and where they go among the rows of tokens."""

    index: Tensor
    """[count] int64: rows of the batch, each once."""
    rows: Tensor
    """[count, hidden_size]"""
    are_added: bool = False
    """Whether they are added to the tokens' rows; otherwise they replace them."""

    def put(self, x: Tensor) -> Tensor:
        """`x` `[rows, hidden_size]` with these rows in their places."""
        rows = self.rows.to(x.dtype)
        return x.index_add(0, self.index, rows) if self.are_added else x.index_copy(0, self.index, rows)


@dataclass
class Batch:
    """A flat run of tokens of all requests in the step.

    Rows from `num_tokens` on are padding: they hold token 0, and nothing is read from or stored for them.
    """

    tokens: Tensor
    """[rows] int64"""
    positions: Tensor
    """[rows] int64, or [axes, rows] where positions have several axes"""
    lengths: Tensor
    """[rows] int64: tokens that each row's sequence has in all, computed or not."""
    num_tokens: int
    states: list[StateView]
    """One for each part that declared a state, in the order of the model."""
    features: PlacedRows | None = None
    """What stands in the place of tokens' embeddings; None where nothing does."""
    crosses: Tensor | None = None
    """[rows] bool: which rows see anything in cross-attention; None where all do."""
    adapters: Tensor | None = None
    """[rows] int64: the slot of each row's adapter, -1 for none; None where no row has one."""
    runs: Sequence[tuple[int, int]] = ()
    """First row and number of rows of each sequence's; of a recorded step, none."""
    token_types: Tensor | None = None
    """[rows] int64: which of a pair of texts each token is of; None where all are of the first."""
    only_tables: bool = False
    """Whether its adapters change nothing but what AdapterTables do, as in a recorded step."""
    kept: dict[Hashable, Tensor] = field(default_factory=dict)
    """Hidden states that later layers of this step come back to (skip connections across layers)."""
    _memo: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed once a step however many layers ask for it."""
        if key not in self._memo:
            self._memo[key] = make()
        value: T = self._memo[key]
        return value

    def types_of_tokens(self) -> Tensor:
        """`token_types`, 0 where nothing says them."""
        return torch.zeros_like(self.tokens) if self.token_types is None else self.token_types

    def adapter_slots(self, rows: int) -> Tensor | None:
        """`adapters` of the first `rows` rows."""
        return None if self.adapters is None else self.adapters[:rows]

    def rows_of_slot(self, slot: int, rows: int) -> Tensor | None:
        """Which of the first `rows` rows have a slot's adapter, which changes more than tables do; None if none."""
        return None if self.adapters is None or self.only_tables else _places(self.adapters[:rows], slot)

    def of_rows(self, index: Tensor | slice) -> "Batch":
        """What a product of only these rows, after the last layer, needs to know of them."""
        return self if self.adapters is None else replace(self, adapters=self.adapters[index])

    def paged(self, index: int) -> PagedView:
        view = self.states[index]
        assert isinstance(view, PagedView)
        return view

    def recurrent(self, index: int) -> RecurrentView:
        view = self.states[index]
        assert isinstance(view, RecurrentView)
        return view


def _places(slots: Tensor, slot: int) -> Tensor | None:
    places = (slots == slot).nonzero().flatten()
    return places if len(places) else None


@dataclass
class SpanBatch:
    """Inputs that are read whole, such as pictures, one after the other: each row of one sees all of its rows.

    Rows from the last run's end on are padding.
    """

    runs: list[tuple[int, int]]
    """First row and number of rows of each input."""
    sees: list[tuple[int, int]] | None = field(default=None, kw_only=True)
    """First row and number of the rows that each input's see; None where they see their own."""
    angles: tuple[Tensor, Tensor] | None = field(default=None, kw_only=True)
    """cos and sin for the rope of its rows, `[rows, pairs]` float32 each; None where positions come otherwise."""
    adapter: int | None = field(default=None, kw_only=True)
    """The slot of the adapter that all of its rows have; None for none."""

    def adapter_slots(self, rows: int) -> Tensor | None:
        """The adapter's slot for each of so many rows, which need not be the batch's own (patches are merged)."""
        return None if self.adapter is None else torch.full((rows,), self.adapter)

    def rows_of_slot(self, slot: int, rows: int) -> Tensor | None:
        """Which of so many rows have the adapter of a slot; None if none."""
        return torch.arange(rows) if self.adapter == slot else None


@dataclass
class CrossBatch(SpanBatch):
    """What requests that start in a step bring for cross-attention, in the order of its rows."""

    cross_kv: list[StateView]
    """The caches of each part that declared a state, with where the rows go in those of its group."""


@dataclass
class EncoderBatch(CrossBatch):
    """The tokens that the encoder reads for all requests that start in a step."""

    tokens: Tensor
    """[rows] int64"""
    positions: Tensor
    """[rows] int64"""
