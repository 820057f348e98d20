"""What parts tell a backend of themselves once, when their weights are there: plain data."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octavo.ops.weight_kinds import WeightKind


@dataclass(frozen=True)
class CacheSpec:
    """A cache of keys and values in blocks."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    """0 where values are the first part of keys (latent attention)."""
    tokens_per_row: int = 1
    """How many tokens a row is of: a block has as many rows as groups of tokens may end in it."""
    is_exact: bool = False
    """Held in float32, whatever dtype caches have otherwise."""

    def rows_of(self, block_size: int) -> int:
        """How many rows a block of so many tokens has."""
        return -(-block_size // self.tokens_per_row)


@dataclass(frozen=True, eq=False)
class NormSpec:
    """A norm over the last dimension."""

    kind: Literal["rms", "layer"]
    weight: Tensor | None
    """[size] float32, or [heads, size] where each head has a row of its own."""
    bias: Tensor | None
    """[size] float32, or [heads, size] as the weight"""
    eps: float


@dataclass(frozen=True)
class RankColumns:
    """Columns of rows that several ranks hold some each of."""

    widths: tuple[int, ...]
    """How many of its first columns each rank gives: side by side they are the whole. 0 where another has the same."""
    given: int
    """How many this rank gives."""
    first: int
    """Where in the whole this rank's own begin."""


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """Norms of queries and of keys."""

    query: NormSpec
    key: NormSpec | None
    """None for keys that are as they should be."""
    full_width: bool = False
    """All heads side by side are one row; otherwise each head is one."""
    query_columns: RankColumns | None = None
    """Where `full_width` rows of queries are several ranks': the norm is of the whole."""
    key_columns: RankColumns | None = None
    value: NormSpec | None = None
    """Of each head's values (Gemma 3n)."""


@dataclass(frozen=True)
class HeadClip:
    """Queries, keys and values between -limit and limit."""

    limit: float


HeadTransform = HeadNorms | HeadClip


@dataclass(frozen=True)
class BlockSparse:
    """Which keys the heads of a block-sparse layer see (Phi-3-small): the last blocks, and every `stride`-th one.

    Which of the blocks count as every `stride`-th slides with the head, by `head_step`.
    """

    block_size: int
    local_blocks: int
    stride: int
    head_step: int
    first_head: int = 0
    """The number of the first head, where other ranks have those before."""


@dataclass(frozen=True, eq=False)
class DistanceBias:
    """What is added to the scores by distance, key position minus query position (T5's buckets, written out)."""

    table: Tensor
    """[num_heads, distances] float32; distances past an end count as that end."""
    origin: int
    """Which of the distances is 0."""

    def at(self, distance: Tensor) -> Tensor:
        """[num_heads, ...] float32, what is added at `distance` `[...]` int64."""
        return self.table[:, (distance + self.origin).clamp_(0, self.table.shape[1] - 1)]


@dataclass(frozen=True, eq=False)
class PositionScores:
    """Products of queries and of keys with a vector for each distance, which join theirs before the scores are scaled.

    Of disentangled attention (He et al. 2021): content to position, and position to content.
    """

    query: Tensor | None
    """[rows, num_heads, vectors] float32: of each query with all vectors."""
    key: Tensor | None
    """[key rows, num_heads, vectors] float32: of each key."""
    numbers: Tensor
    """[distances] int64: which vector is a distance's, key position minus query position; distances past an end count
    as that end."""
    origin: int
    """Which of the distances is 0."""


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """How a layer attends. Its window is its block table's, and so the plan's."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor of the scores."""
    softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap) (Gemma 2)."""
    alibi_slopes: Tensor | None = None
    """[num_heads], added to the scores times (key position - query position) (Press et al. 2022)."""
    distance_bias: DistanceBias | None = None
    """Added to the scores, which may be anything at each distance (Raffel et al. 2020)."""
    interleaved: bool = False
    """Rotary pairs are neighbours (GPT-J) instead of halves (GPT-NeoX)."""
    sparse: BlockSparse | None = None
    """Which of the keys before it a query sees; all if None."""
    sinks: Tensor | None = None
    """[num_heads] float32: a score for each head that takes its share of the softmax, and gives no value (GPT-OSS)."""
    query_weights: Tensor | None = None
    """[head_dim] float32, what the values of each query are multiplied with after positions are applied."""
    transforms: tuple[HeadTransform, ...] = ()
    """What happens to queries, keys and values before positions are applied, in this order."""
    stores: bool = True
    """Whether there are keys and values to store. Otherwise there are queries alone, and another layer has stored
    this step's keys and values in the same cache before."""


@dataclass(frozen=True)
class RotaryTable:
    """The frequencies of rotary pairs."""

    frequencies: Tensor
    """[1, pairs] float32 angles per position; [2, pairs] where a sequence's length chooses (LongRoPE)."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of cos and sin, one for each row of `frequencies`."""
    long_rope_threshold: int | None = None
    """The longest sequence that the first row serves."""


@dataclass(frozen=True)
class DeltaSpec:
    """How a layer's memory by keys is written and read: octavo.ops.torch.delta_rule."""

    num_heads: int
    """Of values, each with a memory of its own."""
    num_key_heads: int
    """Of queries and keys, a divisor of them."""
    key_dim: int
    value_dim: int
    scale: float
    """Factor of queries."""
    norm_eps: float | None = None
    """Queries and keys are divided by `sqrt(sum of squares + norm_eps)`; None to leave them as they are."""
    beta_scale: float = 1.0
    """Factor of `sigmoid(beta)`: with 2 a write may turn over what the memory holds (Grazzi et al. 2024)."""
    in_turn: bool = False
    """Whether heads of values have the key heads in turn, as llama.cpp has them; else neighbouring heads share one."""


@dataclass(frozen=True)
class Gate:
    """How the two halves of a gated feed-forward's inner rows become one: `activation(gate) * (up + up_offset)`."""

    activation: str | None
    """A name in ACTIVATIONS; None to leave the gate as it is."""
    threshold: float | None = None
    """Gates that are not above it are 0 (MiniCPM-S)."""
    limit: float | None = None
    """Gates are at most as large, ups between -limit and limit (Phi-3-small)."""
    up_offset: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but an activation."""
        return self.activation is not None and self == Gate(self.activation)


@dataclass(frozen=True)
class RouterSpec:
    """Which experts a row goes to, by scores that are made of the router's logits, and how much each counts."""

    top_k: int
    norm: float | None = None
    """The chosen weights are divided by their p-norm of this p: 1 for a sum of one."""
    eps: float = 0.0
    """Added to that norm."""
    min_norm: float = 0.0
    """That norm is at least as large (ERNIE 4.5)."""
    factor: float = 1.0
    """Of the weights."""
    num_groups: int = 1
    """Experts are in so many groups one after the other ..."""
    top_groups: int = 1
    """... of which so many are chosen from: those with the largest scores (DeepSeek-V2) ..."""
    group_best: int = 1
    """... or with the largest sums of their so many best scores (2 in DeepSeek-V3)."""
    scores: Literal["softmax", "sigmoid", "sqrt_softplus", "logits"] = "softmax"
    """What makes scores of logits: a softmax over all experts, or a function of each logit by itself, or nothing."""
    is_biased: bool = False
    """The router has a bias for each expert that is added to the scores by which groups and experts are chosen, but
    not to the weights (DeepSeek-V3)."""
    noise: float | None = None
    """The sparse mixer (Liu et al. 2023) instead: experts one after the other, each weighted by a softmax over those
    left that are not much worse. "Much worse" is a relative distance of more than twice `noise`."""

    def check(self, experts: int) -> None:
        """Raises ValueError where it cannot choose among so many `experts`."""
        if not 0 < self.top_k <= experts:
            raise ValueError(f"the router cannot choose {self.top_k} of {experts} experts")
        if self.num_groups < 1 or experts % self.num_groups or not 0 < self.top_groups <= self.num_groups:
            raise ValueError(f"the router cannot choose {self.top_groups} of {self.num_groups} groups of {experts}")


@dataclass(frozen=True)
class Capabilities:
    """What a backend computes with beside float32."""

    weight_kinds: frozenset[WeightKind]
    """Kinds of octavo.ops.stored_rows that `stored_linear` takes; of others, the loader makes floats."""
    dtypes: frozenset[torch.dtype]
    """What weights may be held in without being slower than in float32."""
    row_dtypes: frozenset[torch.dtype]
    """Of these, what rows may be in where weights are plain; all other products take rows of float32 ..."""
    any_rows_meet_kinds: bool = False
    """... unless rows of these dtypes meet weights of all kinds, which are then rounded to the rows' dtype."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to some outputs of a weight: `x @ a.T @ b.T`."""

    first: int
    """The first of these outputs."""
    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[outputs, rank], with the adapter's scale in it"""


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """What an adapter makes of a weight's results y: `magnitude * y + bias`, and what is of low rank."""

    low_rank: tuple[LowRank, ...]
    magnitude: Tensor | None = None
    """[outputs] float32 (DoRA's lengths over the weight's)"""
    bias: Tensor | None = None
    """[outputs] float32"""
