"""How a model is split among ranks that share each layer (tensor parallelism; Shoeybi et al. 2019).

A part says itself how it is split: `split` leaves of it what one rank computes. Its first products are cut by outputs
(heads, channels, inner values), its last one by inputs, and what that gives is summed over the ranks. A part that does
not say it is whole on every rank, which is correct: the rows between parts have the same bits on all of them.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from octavo.ops import RankColumns

Range = tuple[int, int]
"""[first, end)"""
GRAIN = 256
"""Values that quantized formats have in a block at most: where cuts fall between blocks, these stay as stored."""
FINEST_SHARES = 8
"""How many blocks each rank has at least where shares are uneven; else the blocks are smaller."""


@dataclass(frozen=True)
class Split:
    """One of the ranks that share each layer."""

    rank: int
    size: int
    """How many they are."""

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def even(self, count: int, what: str) -> Range:
        """This rank's of `count` things. Raises ValueError, which names them, where they do not divide."""
        if count % self.size:
            raise ValueError(f"{count} {what} cannot be divided among {self.size} ranks")
        each = count // self.size
        return self.rank * each, (self.rank + 1) * each

    def shares(self, count: int) -> tuple[Range, ...]:
        """All ranks' shares of `count` values, cut at multiples of GRAIN or of a smaller power of two.

        Of the largest that gives even shares, or such as differ by little. Raises ValueError for too few values.
        """
        if count < self.size:
            raise ValueError(f"{count} values cannot be divided among {self.size} ranks")
        grain = GRAIN
        while grain > 1 and count % (grain * self.size) and count < grain * self.size * FINEST_SHARES:
            grain //= 2
        blocks = -(-count // grain)
        cuts = [min(count, blocks * rank // self.size * grain) for rank in range(self.size)]
        return tuple(zip(cuts, [*cuts[1:], count], strict=True))

    def share(self, count: int) -> Range:
        """This rank's of `shares`."""
        return self.shares(count)[self.rank]

    def widths(self, count: int) -> tuple[int, ...]:
        """How many values each rank has of `shares`."""
        return tuple(end - first for first, end in self.shares(count))


@dataclass(frozen=True)
class HeadSplit:
    """Which heads of an attention a rank has. Fewer key heads than ranks are each on several of them.

    Raises ValueError, which names the count, where heads cannot be divided.
    """

    split: Split
    num_heads: int
    num_kv_heads: int
    """Of keys, in all; a divisor of `num_heads`."""
    head_dim: int

    def __post_init__(self) -> None:
        self.split.even(self.num_heads, "attention heads")
        if self.split.size % self.num_kv_heads:
            self.split.even(self.num_kv_heads, "key heads")

    @property
    def heads(self) -> Range:
        """Numbers of its query heads."""
        return self._of(self.num_heads, self.split.rank)

    @property
    def kv_heads(self) -> Range:
        """Numbers of its key heads."""
        return self._of(self.num_kv_heads, self.split.rank)

    @property
    def values(self) -> Range:
        """Its columns of queries, and of what comes of them."""
        return self.heads[0] * self.head_dim, self.heads[1] * self.head_dim

    @property
    def kv_values(self) -> Range:
        """Its columns of keys or values."""
        return self.kv_heads[0] * self.head_dim, self.kv_heads[1] * self.head_dim

    @property
    def query_columns(self) -> RankColumns:
        return self._columns(self.num_heads)

    @property
    def key_columns(self) -> RankColumns:
        return self._columns(self.num_kv_heads)

    def _of(self, count: int, rank: int) -> Range:
        """A rank's of so many heads."""
        first = rank * count // self.split.size
        return first, first + max(1, count // self.split.size)

    def _columns(self, count: int) -> RankColumns:
        each = [self._of(count, rank) for rank in range(self.split.size)]
        widths = [
            0 if rank and own == each[rank - 1] else (own[1] - own[0]) * self.head_dim for rank, own in enumerate(each)
        ]
        return RankColumns(tuple(widths), widths[self.split.rank], each[self.split.rank][0] * self.head_dim)


class HeadsInTurn(HeadSplit):
    """Of an attention whose heads have the key heads in turn: head `i` that of number `i % num_kv_heads`.

    A rank's heads follow each other, and so do their key heads: all of them where it has that many heads.
    """

    def __post_init__(self) -> None:
        each, kv_heads = self.num_heads // self.split.size, self.num_kv_heads
        self.split.even(self.num_heads, "attention heads")
        if each % kv_heads and kv_heads % each:
            raise ValueError(f"{each} heads of a rank cannot share {kv_heads} key heads in turn")

    @property
    def kv_heads(self) -> Range:
        """Numbers of its key heads."""
        first, count = self.heads[0] % self.num_kv_heads, self.heads[1] - self.heads[0]
        return first, first + min(count, self.num_kv_heads)


@runtime_checkable
class TakesSplit(Protocol):
    """A part that can be split."""

    def split(self, split: Split) -> None:
        """Leave what one rank has of the part. It has no weights yet, and answers for the parts in it.

        Raises ValueError, which names what cannot be divided, before anything is changed.
        """
        ...


def split_parts(module: nn.Module, split: Split, is_lenient: bool = False) -> None:
    """Split `module` if it says how, else all parts in it that do.

    Args:
        is_lenient: parts that cannot be divided stay whole; otherwise their ValueError is raised.
    """
    if not isinstance(module, TakesSplit):
        for child in module.children():
            split_parts(child, split, is_lenient)
    elif is_lenient:
        with suppress(ValueError):
            module.split(split)
    else:
        module.split(split)


def split_model(model: TakesSplit, split: Split) -> None:
    """Leave of a model (a CausalLM), built on the meta device, what one rank has.

    Raises ValueError, which names what cannot be divided; of a tower, such parts stay whole.
    """
    if split.size > 1:
        model.split(split)
