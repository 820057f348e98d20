"""Resamplers: learned queries attend to an item's rows, so that each item has as many (Alayrac et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import SpanBatch
from octavo.parts.linear_layer import Linear
from octavo.parts.media_tower import together
from octavo.parts.names import Into, parameter, stacked
from octavo.parts.norms import LayerNorm
from octavo.parts.split import HeadSplit, Split


@dataclass
class QueryBatch(SpanBatch):
    """Queries of several items, of which those of an item see all of its rows."""

    keys: Tensor
    """[key rows, size]: what keys are made of."""
    values: Tensor
    """[key rows, size]: what values are made of."""
    key_runs: list[tuple[int, int]]
    """First row and number of rows of each item."""


def runs_of(items: Sequence[Tensor]) -> list[tuple[int, int]]:
    """First row and number of rows of each item, where they lie one after the other."""
    runs, first = list[tuple[int, int]](), 0
    for item in items:
        runs.append((first, len(item)))
        first += len(item)
    return runs


class QueryAttention(nn.Module):
    """Attention of an item's queries over its rows.

    Args:
        hidden_size: of the queries and of the result.
        num_heads: how many share it.
        key_size: values of a row.
        query_size: values of a query that comes in; None for `hidden_size`.
    """

    def __init__(self, hidden_size: int, num_heads: int, key_size: int, query_size: int | None = None) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads cannot share {hidden_size} values")
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.inputs = nn.ModuleList(
            Linear(size, hidden_size, True) for size in (query_size or hidden_size, key_size, key_size)
        )
        """For queries, keys and values."""
        self.o = Linear(hidden_size, hidden_size, True)

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_heads, self.head_dim)
        for linear in self.inputs:
            cast(Linear, linear).split_outputs(own.values)
        self.o.split_inputs(split, own.values)
        self.num_heads = own.heads[1] - own.heads[0]

    def prepare(self, backend: Backend) -> None:
        self._attention = backend.full_attention

    def forward(self, x: Tensor, batch: QueryBatch) -> Tensor:
        query, key, value = (
            linear(rows, batch).view(len(rows), self.num_heads, self.head_dim)
            for linear, rows in zip(self.inputs, (x, batch.keys, batch.values), strict=True)
        )
        runs = [(*queries, *keys) for queries, keys in zip(batch.runs, batch.key_runs, strict=True)]
        out = self._attention(query, key, value, self.head_dim**-0.5, runs)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]


def resampler_names(published: str, path: str) -> dict[str, str | Into]:
    """Where the tensors go that published code gives a Resampler, but for its last norm and projection."""

    def of_inputs(weight: Tensor) -> Tensor:
        """What is one tensor for queries, keys and values, as one each."""
        return weight.view(3, -1, *weight.shape[1:])

    return {
        f"{published}.query": parameter(f"{path}.query"),
        f"{published}.kv_proj": f"{path}.project",
        f"{published}.ln_{{q|kv}}": f"{path}.{{query|key}}_norm",
        f"{published}.attn.in_proj_weight": stacked(f"{path}.attn.inputs.{{e}}.weight", of_inputs, full_name=True),
        f"{published}.attn.in_proj_bias": stacked(f"{path}.attn.inputs.{{e}}.bias", of_inputs, full_name=True),
        f"{published}.attn.out_proj": f"{path}.attn.o",
    }


class Resampler(nn.Module):
    """One layer of cross-attention, with norms around it and a last projection (Bai et al. 2023).

    Args:
        num_queries: rows that each item has in the end.
        hidden_size: of them.
        num_heads: of the attention.
        input_size: values of an item's rows; others than `hidden_size` are projected first.
        eps: of the norms.
    """

    def __init__(self, num_queries: int, hidden_size: int, num_heads: int, input_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        norm = partial(LayerNorm, hidden_size, eps)
        self.query = nn.Parameter(torch.empty(num_queries, hidden_size), requires_grad=False)
        self.project = Linear(input_size, hidden_size) if input_size != hidden_size else None
        self.query_norm, self.key_norm, self.norm = norm(), norm(), norm()
        self.attn = QueryAttention(hidden_size, num_heads, hidden_size)
        self.out = Linear(hidden_size, hidden_size)

    def forward(
        self, items: Sequence[Tensor], key_positions: Sequence[Tensor], query_positions: Tensor | None = None
    ) -> list[Tensor]:
        """`[num_queries, hidden_size]` for each item.

        Args:
            items: [rows, input_size] each.
            key_positions: [rows, hidden_size] of each, added to what keys are made of.
            query_positions: [num_queries, hidden_size], added to the queries.
        """
        query = self.query_norm(self.query)
        query = query if query_positions is None else query + query_positions
        values = torch.cat(list(items))
        runs = SpanBatch(runs_of(items))
        values = self.key_norm(values if self.project is None else self.project(values, runs))
        keys = values + torch.cat([positions.to(values) for positions in key_positions])

        def attend(x: Tensor, batch: SpanBatch) -> Tensor:
            x = self.attn(x, QueryBatch(batch.runs, keys, values, runs.runs))
            return self.out(self.norm(x), batch)  # type: ignore[no-any-return]

        return together([query] * len(items), attend)


def sin_cos_positions(size: int, grid: tuple[int, int]) -> Tensor:
    """Positions of a grid, rows and columns, `[rows * columns, size]` in float32 (Vaswani et al. 2017).

    The first half of a row is for its column, the second for its row; of each, sines come first.
    """
    frequencies = 10000.0 ** -(torch.arange(size // 4, dtype=torch.float32) / (size / 4))
    rows, columns = (torch.outer(torch.arange(n, dtype=torch.float32), frequencies) for n in grid)
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (rows, columns))
    return torch.cat(
        [columns.repeat(len(rows), 1), rows.repeat_interleave(len(columns), dim=0)],
        dim=1,
    )
