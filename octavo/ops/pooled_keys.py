"""Keys that are pooled of several tokens each: the operations of attention that sees few keys of far tokens.

Every `ratio` tokens of a sequence make an *entry*, when the last of them comes. It lies in the block of that token, in
a cache whose blocks have a row for each group of tokens that may end in them. So entries are found by a sequence's
block table alone, a prefix cache's blocks hold theirs, and a token that is computed again writes its entry again.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.specs import AttentionSpec


@dataclass(frozen=True, eq=False)
class PoolSpec:
    """How tokens become an entry."""

    ratio: int
    """Tokens that an entry is of, from a multiple of it on."""
    is_overlapping: bool
    """Whether the group of tokens before counts as well, each token having another value and gate for that."""
    bias: Tensor
    """[ratio, dim] float32, or [ratio, 2 * dim] where it overlaps, added to gates by a token's place in its group."""

    @property
    def dim(self) -> int:
        """Values of an entry."""
        return self.bias.shape[1] // (2 if self.is_overlapping else 1)

    @property
    def reach(self) -> int:
        """How many of the last tokens an entry is made of."""
        return self.ratio * (2 if self.is_overlapping else 1)


@dataclass(slots=True)
class PooledKeys:
    """Entries, and which of them a step's tokens see: of those that are complete."""

    cache: KVCache
    plan: AttentionPlan
    ratio: int
    selected: Tensor | None = None
    """[rows, count] int32 numbers of entries, as `select_keys` gives them; None for all."""


class PooledAttention(Protocol):
    """Operations with entries, those of a backend. Plans have no gaps, and runs no keys that both ways see."""

    def rotate_tail(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        interleaved: bool,
        dtype: torch.dtype = torch.float32,
        backwards: bool = False,
    ) -> Tensor:
        """`x` `[rows, heads, dim]` with each head's last `2 * pairs` values rotated, in `dtype`.

        `angles` as `Backend.angles` gives them, for these rows at least; `backwards` by the negative angles.
        """
        ...

    def pool_keys(self, cache: KVCache, plan: AttentionPlan, spec: PoolSpec) -> Tensor:
        """Of each token that completes a group the group's entry, before norms: `[tokens, dim]` float32, else zeros.

        An entry is, value by value, the mean of its tokens' values, weighted by the softmax of their gates with `bias`
        (DeepSeek-AI 2026). The cache (float32, one head) has a token's values, then its gates. Where groups overlap,
        the first half of either counts for the next group's entry, the second half for its own.
        """
        ...

    def store_pooled(self, keys: Tensor, cache: KVCache, plan: AttentionPlan, ratio: int) -> None:
        """Write `keys` `[tokens, dim]` float32 to the places of entries, of the tokens that complete one."""
        ...

    def attend_pooled(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        pooled: PooledKeys | None,
        spec: AttentionSpec,
        rows: int,
    ) -> Tensor:
        """Attention over the window's keys, and over entries with them: `[rows, heads, value_dim]` float32.

        One softmax is over both, and over the spec's sinks; of the spec nothing else counts but sizes and scale.

        Args:
            query: [tokens, heads, head_dim] float32.
            cache: keys of one head, which are values as well.
            plan: of the window.
            pooled: entries; None for the window alone.
            spec: of the layer.
            rows: of the result; padding is zero.
        """
        ...
