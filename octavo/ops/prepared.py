"""What a backend makes ready once and uses in every step: weights, adapters' changes to them, recordings of steps."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class PackedLinear(Protocol):
    """A weight `[out, in]`, ready to be multiplied with."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` `[rows, in]` to `[rows, out]`; `bias` `[out]` is float32."""
        ...

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0, first: int | None = None) -> Tensor:
        """Rows `ids` `[count]` of the weight, times `scale`: `[count, in]` (what a tied token table is read by).

        With `first`, ids count from it on, and those of no row give zeros: other ranks have them.
        """
        ...


class PackedHeads(Protocol):
    """A weight `[out, in]` for each head, ready to be multiplied with."""

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` `[rows, heads, in]` to `[rows, heads, out]` in `dtype`, each head by its own weight."""
        ...


class PackedExperts(Protocol):
    """Weights of experts, `[out, in]` each, ready to be multiplied with."""

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        """A result for each choice, in the order of `chosen`.

        Args:
            x: [rows, in], or [rows * choices, in] where each choice has a row of its own.
            chosen: [rows, choices] int64 numbers of experts.

        Returns: [rows * choices, out]
        """
        ...


class AdapterTable(Protocol):
    """What the adapters of a step make of one weight's results, or of those of a layer's experts, by slot."""

    def put(self, slot: int, update: object | None, expert: int = 0) -> None:
        """Have a slot's adapter change these results by what `Backend.pack_update` has made; None for no change.

        Results that were recorded before follow.
        """
        ...

    def apply(self, x: Tensor, y: Tensor, slots: Tensor, chosen: Tensor | None = None) -> None:
        """Change `y` in place, row by row; rows without an adapter, or whose adapter has no update, keep their bits.

        Args:
            x: [rows, inputs], or [rows * choices, inputs], what was multiplied.
            y: [rows, outputs], or [rows * choices, outputs], the results.
            slots: [rows] int64, the slot of each row's adapter, -1 for none.
            chosen: [rows, choices] int64, the experts, where results are of theirs.
        """
        ...


class RowAdapters(NamedTuple):
    """A weight's adapters, and which of them the rows of a step have."""

    table: AdapterTable
    slots: Tensor
    """[rows] int64"""


class RecordedDecode(Protocol):
    """Decode steps, which run again from a recording."""

    max_rows: int
    """Rows that a step may have."""
    kept_rows: int
    """Of how many rows the results stay on the device, of recordings of all sizes together."""

    def run(
        self,
        tokens: Sequence[int],
        table_rows: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[int],
        lengths: Sequence[int],
        encoder_lengths: Sequence[int],
        first_keys: Sequence[int],
        adapters: Sequence[int] = (),
    ) -> tuple[Tensor, ...] | None:
        """What the recorded function gives for these rows; None where it cannot be recorded.

        The block tables hold the tokens' blocks already. Results are valid until the next call.

        Args:
            tokens: of each sequence.
            table_rows: the sequences' rows of the block tables.
            starts: how many tokens of each sequence come before.
            positions: of the tokens, which decide rope and the like.
            lengths: tokens that each sequence has in all.
            encoder_lengths: the end of the rows that each sequence sees in cross-attention.
            first_keys: the first of them.
            adapters: slots of the sequences' adapters, -1 for none; of steps recorded with adapters.
        """
        ...
