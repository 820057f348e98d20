"""Ranks: the processes that compute a model together, each a part of every layer or some of the layers.

A rank is in a *stage*, which has some of the layers, and the ranks of a stage, its *tensor ranks*, share each of them.
Ranks meet in the operations of `Ranks`, which all of them call in the same order: what is called follows from the step
alone, and never from what only one rank knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankPlace:
    """Where a rank stands among all of them. Ranks of one stage follow each other."""

    rank: int = 0
    size: int = 1
    """Ranks in all: `tensor_size * num_stages`."""
    tensor_size: int = 1
    """Ranks that share each layer."""

    def __post_init__(self) -> None:
        if self.tensor_size < 1 or self.size % self.tensor_size or not 0 <= self.rank < self.size:
            raise ValueError(f"there is no rank {self.rank} of {self.size} with {self.tensor_size} for each layer")

    @property
    def tensor_rank(self) -> int:
        """Which of those that share its layers it is."""
        return self.rank % self.tensor_size

    @property
    def stage(self) -> int:
        return self.rank // self.tensor_size

    @property
    def num_stages(self) -> int:
        return self.size // self.tensor_size

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.num_stages - 1

    @property
    def is_output(self) -> bool:
        """Whether tokens are sampled here: tensor rank 0 of the last stage."""
        return self.tensor_rank == 0 and self.is_last_stage


@dataclass(frozen=True)
class RankLink:
    """How ranks reach each other."""

    memory: int | None = None
    """File descriptor of memory that all ranks of one machine have inherited."""
    address: str | None = None
    """torch.distributed's init_method, "tcp://host:port" or "file:///path": where there is no memory in common."""
    timeout: float = 60.0
    """Seconds that a rank waits for another in one operation."""


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

    def least(self, values: Sequence[int]) -> list[int]:
        """The smallest of all ranks' values at each index, outside steps; all give as many."""
        ...
