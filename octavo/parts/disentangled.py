"""Disentangled attention (He et al. 2021): scores of contents, and of contents with vectors of distances."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedHeads, PositionScores
from octavo.parts.batch import Batch, SpanBatch
from octavo.parts.bidirectional import BidirectionalAttention
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import Norm
from octavo.parts.relative_bias import MOST_DISTANCE
from octavo.parts.split import HeadSplit, Split

ROWS_AT_ONCE = 2048
"""Whose products with all vectors are there at a time; a longer run is taken by itself."""


class DistanceVectors(nn.Module):
    """A vector for each distance or bucket of distances, which all layers share and project.

    Args:
        hidden_size: of a vector.
        max_distance: distances that are further are as this one.
        num_buckets: on each side; half of them have a distance each, those of the rest grow logarithmically. None for
            as many as distances.
        norm: of the vectors; None for none.
    """

    float32_parameters = True

    def __init__(
        self, hidden_size: int, max_distance: int, num_buckets: int | None = None, norm: Norm | None = None
    ) -> None:
        super().__init__()
        if num_buckets is not None and not 2 <= num_buckets < max_distance:
            raise ValueError(f"{num_buckets} buckets cannot hold distances up to {max_distance}")
        if max_distance > MOST_DISTANCE:
            raise ValueError(f"distances up to {max_distance} are not supported; up to {MOST_DISTANCE} are")
        self.max_distance, self.num_buckets = max_distance, num_buckets
        count = 2 * (num_buckets or max_distance)
        self.weight = nn.Parameter(torch.empty(count, hidden_size), requires_grad=False)
        self.norm = norm

    def vectors(self, dtype: torch.dtype) -> Tensor:
        """`[vectors, hidden_size]`, normed. The weight is loaded."""
        rows = self.weight.data.to(dtype)
        return rows if self.norm is None else self.norm(rows)

    def numbers(self) -> Tensor:
        """int64, the vector of each distance, key position minus query position, from -max_distance on."""
        back = -torch.arange(-self.max_distance, self.max_distance + 1, device="cpu")
        middle = len(self.weight) // 2
        if self.num_buckets is not None:
            near = self.num_buckets // 2
            whole = torch.log(torch.tensor((self.max_distance - 1) / near, device="cpu"))
            ratio = torch.log(back.abs().clamp(min=near) / near) / whole
            far = torch.ceil(ratio * (near - 1)) + near
            back = torch.where(back.abs() <= near, back, (far * back.sign()).long())
        return (back + middle).clamp(0, 2 * middle - 1).to(self.weight.device)


class DisentangledAttention(BidirectionalAttention):
    """Attention whose scores join products of queries and keys with projected vectors of distances.

    The scale counts the terms: `(terms * head_dim) ** -0.5`.

    Args:
        hidden_size: of the residual stream.
        num_heads: how many share it.
        head_dim: values of a head; None for an even share of `hidden_size`.
        distances: the vectors.
        terms: which products there are beside queries with keys: c2p of queries, p2c of keys with vectors.
        shares_projections: vectors are projected as contents are; otherwise by weights of their own.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int | None = None,
        *,
        distances: DistanceVectors,
        terms: Collection[str],
        shares_projections: bool,
    ) -> None:
        size = hidden_size // num_heads if head_dim is None else head_dim
        scale = ((1 + len(set(terms))) * size) ** -0.5
        super().__init__(hidden_size, num_heads, head_dim=head_dim, bias=True, scale=scale)
        self._distances = (distances,)  # a tuple: they are the model's
        self.terms = {"c2p": "c2p" in terms, "p2c": "p2c" in terms}
        own = {term: has and not shares_projections for term, has in self.terms.items()}
        inner = num_heads * self.head_dim
        self.pos_k = Linear(hidden_size, inner, bias=True) if own["c2p"] else None
        self.pos_q = Linear(hidden_size, inner, bias=True) if own["p2c"] else None

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_heads, self.head_dim)
        for projection in (self.pos_k, self.pos_q):
            if projection is not None:
                projection.split_outputs(own.values)
        super().split(split)

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        (distances,) = self._distances
        self._backend, self._numbers = backend, distances.numbers()
        self._plain: tuple[PackedHeads | None, PackedHeads | None] | None = None

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        query, key, value = self.heads(x, batch)
        out = torch.zeros_like(query)
        for runs, slot in _groups(batch):
            first, end = runs[0][0], runs[-1][0] + runs[-1][1]
            keys_of, queries_of = self._vectors_of(slot, x.dtype)
            scores = PositionScores(
                None if keys_of is None else keys_of(query[first:end], torch.float32),
                None if queries_of is None else queries_of(key[first:end], torch.float32),
                self._numbers,
                len(self._numbers) // 2,
            )
            own = [(begin - first, count, begin - first, count) for begin, count in runs]
            heads = query[first:end], key[first:end], value[first:end]
            out[first:end] = self._attention(*heads, self.scale, own, scores)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]

    def _vectors_of(self, slot: int | None, dtype: torch.dtype) -> tuple[PackedHeads | None, PackedHeads | None]:
        """What queries, and what keys are multiplied with: the projected vectors, with the adapter of a slot."""
        if slot is not None:
            return self._project(slot, dtype)
        if self._plain is None:
            self._plain = self._project(None, dtype)
        return self._plain

    def _project(self, slot: int | None, dtype: torch.dtype) -> tuple[PackedHeads | None, PackedHeads | None]:
        (distances,) = self._distances
        rows = distances.vectors(dtype)
        batch: Any = SpanBatch([(0, len(rows))], adapter=slot)
        size = self.num_heads * self.head_dim

        def of(term: str, projection: Linear | None, column: int) -> PackedHeads | None:
            if not self.terms[term]:
                return None
            y: Tensor = (
                self.qkv(rows, batch)[:, column : column + size] if projection is None else projection(rows, batch)
            )
            by_head = y.float().view(len(rows), self.num_heads, self.head_dim).transpose(0, 1)
            return self._backend.head_linear(by_head.contiguous())

        return of("c2p", self.pos_k, size), of("p2c", self.pos_q, 0)


def _groups(batch: Batch) -> Iterator[tuple[list[tuple[int, int]], int | None]]:
    """A step's runs, some at a time, that have one adapter, and its slot; None where they have none."""
    group, rows, slot = list[tuple[int, int]](), 0, _slot_of(batch, 0)
    for first, count in batch.runs:
        own = _slot_of(batch, first)
        if group and (own != slot or rows + count > ROWS_AT_ONCE):
            yield group, slot
            group, rows = [], 0
        group.append((first, count))
        rows, slot = rows + count, own
    if group:
        yield group, slot


def _slot_of(batch: Batch, row: int) -> int | None:
    """The slot of a row's adapter; None where it has none."""
    slot = -1 if batch.adapters is None else int(batch.adapters[row])
    return None if slot < 0 else slot
