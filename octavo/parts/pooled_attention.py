"""Attention to the last tokens, and to keys pooled of those before them (DeepSeek-AI 2026)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from octavo.ops import AttentionSpec, Backend
from octavo.parts.batch import Batch
from octavo.parts.group_linear import GroupLinear
from octavo.parts.key_pool import KeyIndexer, KeyPool
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import PlainRMSNorm, RMSNorm, norm_rows
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.split import Split
from octavo.parts.state import PagedKV
from octavo.parts.weight_slots import Shard, shard_parameter


class PooledAttention(nn.Module):
    """Attention with one key a token for all heads, which is its value too, and entries of a KeyPool beside them.

    Since values are rotated as keys, results are rotated back by their own positions. Heads then go through weights of
    their groups, and through one for all.

    Args:
        hidden_size: of the residual stream.
        num_heads, head_dim: query heads, and values of a head.
        q_rank: inner size of the query's projection.
        window: how many of the last tokens a query sees.
        rope: rotates a head's last values.
        eps: of the norms of the query's inner values, of each head's query, and of the key.
        out_groups, out_rank: groups of heads, and how many values each group's weight makes of its heads.
        pool: makes entries; None for the window alone.
        indexer: finds the entries that a token sees; None for all.
    """

    float32_parameters = True

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        q_rank: int,
        window: int,
        rope: RotaryEmbedding,
        eps: float,
        out_groups: int,
        out_rank: int,
        pool: KeyPool | None = None,
        indexer: KeyIndexer | None = None,
    ) -> None:
        super().__init__()
        if num_heads % out_groups:
            raise ValueError(f"{num_heads} heads cannot be in {out_groups} groups")
        self.num_heads, self.head_dim, self.rope = num_heads, head_dim, rope
        self.q_a, self.q_norm = Linear(hidden_size, q_rank), RMSNorm(q_rank, eps)
        self.q_b, self.head_norm = Linear(q_rank, num_heads * head_dim), PlainRMSNorm(head_dim, eps)
        self.kv_a, self.kv_norm = Linear(hidden_size, head_dim), RMSNorm(head_dim, eps)
        self.o_a = GroupLinear(num_heads // out_groups * head_dim, out_groups * out_rank, out_groups)
        self.o_b = Linear(out_groups * out_rank, hidden_size)
        self.sinks = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        self.pool, self.indexer, self.out_rank = pool, indexer, out_rank
        self.state = PagedKV(1, head_dim, 0, window)  # values are the keys
        self.state_index = -1

    def split(self, split: Split) -> None:
        """See octavo.parts.split: heads are divided; keys, entries and the indexer are everywhere."""
        first, end = split.even(self.num_heads, "attention heads")
        own = self.o_a.split_parts(split)
        self.o_b.split_inputs(split, (own[0] * self.out_rank, own[1] * self.out_rank))
        self.q_b.split_outputs((first * self.head_dim, end * self.head_dim))
        shard_parameter(self, "sinks", Shard(rows=((first, end),)))
        self.num_heads = end - first

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._spec = AttentionSpec(self.num_heads, 1, self.head_dim, self.head_dim**-0.5, sinks=self.sinks.data)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        rows, tokens, backend = x.shape[0], batch.num_tokens, self._backend
        view, angles, interleaved = batch.paged(self.state_index), self.rope.angles(batch), self.rope.interleaved
        inner = norm_rows(self.q_norm, self.q_a(x, batch), batch)
        query = self.head_norm(self.q_b(inner, batch).view(-1, self.head_dim)).view(rows, self.num_heads, -1)
        query = backend.rotate_tail(query[:tokens], angles, interleaved)
        key = norm_rows(self.kv_norm, self.kv_a(x, batch), batch)[:tokens]
        key = backend.rotate_tail(key.unsqueeze(1), angles, interleaved)
        backend.store(key, None, view.cache, view.plan)
        pooled = None if self.pool is None else self.pool(x, batch)
        if pooled is not None and self.indexer is not None:
            pooled = replace(pooled, selected=self.indexer(inner, x, batch))
        mixed = backend.attend_pooled(query, view.cache, view.plan, pooled, self._spec, rows)
        out = backend.rotate_tail(mixed, angles, interleaved, x.dtype, backwards=True)
        return self.o_b(self.o_a(out.flatten(1), batch), batch)  # type: ignore[no-any-return]
