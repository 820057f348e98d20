"""Ranks: the processes that compute a model together, each a part of every layer or some of the layers.

A rank is in a *stage*, which has some of the layers, and the ranks of a stage, its *tensor ranks*, share each of them.
Ranks meet in the operations of `Ranks`, which all of them call in the same order: what is called follows from the step
alone, and never from what only one rank knows.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.rank_place import RankLink, RankPlace


class Ranks(Protocol):
    """Operations in which ranks meet, those of a backend.

    Each raises RankError where a rank that it needs is gone, does not come in time, or comes with another operation
    or another size. The ranks cannot go on together after that.
    """

    @property
    def place(self) -> RankPlace:
        """Of this rank: `RankPlace()` before it has joined others."""
        ...

    def join(self, place: RankPlace, link: RankLink) -> None:
        """Meet the other ranks. Raises RankError, and ValueError for a link that does not serve this backend."""
        ...

    def agree(self) -> None:
        """Once joined, choose with the others between ways to compute whose bits differ: all take the same."""
        ...

    def leave(self) -> None:
        """Be one rank alone again. Waits for nobody."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of the tensor ranks' `x` `[rows, width]`, alike in shape and dtype.

        It is summed in the order of ranks in float32, and rounded once to the dtype of `x`: a row has the same bits on
        every rank, whatever the number of rows. `x` may be overwritten.
        """
        ...

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """The tensor ranks' `x` `[rows, widths[tensor rank]]` side by side: `[rows, sum(widths)]`."""
        ...

    def send(self, x: Tensor) -> None:
        """`x` `[rows, width]` to the same tensor rank of the next stage, in the order of calls.

        Waits only where so much has been sent and not yet been received that there is no room.
        """
        ...

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """What the same tensor rank of the previous stage has sent: `[rows, width]`."""
        ...

    def await_ranks(self) -> None:
        """Wait until what was launched is done, where that could wait in vain for other ranks; else do nothing.

        Raises RankError where a rank does not come in time.
        """
        ...

    def least(self, values: Sequence[int]) -> list[int]:
        """The smallest of all ranks' values at each index, outside steps; all give as many."""
        ...
