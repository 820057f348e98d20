"""Multi-head latent attention (DeepSeek-AI 2024): the cache holds one small vector a token, for all heads."""

import torch
from torch import Tensor, nn

from octavo.ops import AttentionSpec, Backend
from octavo.parts.batch import Batch
from octavo.parts.head_linear import HeadLinear
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import RMSNorm, norm_rows
from octavo.parts.query_scale import QueryScale
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.split import Split
from octavo.parts.state import PagedKV


class LatentAttention(nn.Module):
    """Attention whose cache holds a normed latent and one rotated key part, shared by all heads.

    Keys and values are never expanded: what would make a head's key of the latent is applied to its query instead, and
    what would make its value to the mixed latents. So it is attention with one key head of `rank + rope_dim` values.

    Args:
        hidden_size: of the residual stream.
        num_heads: how many query heads.
        rank: size of the latent.
        nope_dim, rope_dim, value_dim: of each head, the query's part without and with positions, and the value.
        rope: rotates the part with positions.
        q_rank: inner size of the query's projection; None where it is a single one.
        eps: of the norms of the latent and of the query's inner values.
        bias: of the projections from and to the residual stream, but not of a single query projection.
        scale: of the scores; (nope_dim + rope_dim) ** -0.5 if None.
        query_scale: what queries are multiplied with, by their positions; None for nothing.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        rank: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        rope: RotaryEmbedding,
        q_rank: int | None,
        eps: float,
        bias: bool = False,
        scale: float | None = None,
        query_scale: QueryScale | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.rank, self.rope = num_heads, rank, rope
        self.nope_dim, self.rope_dim, self.value_dim = nope_dim, rope_dim, value_dim
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        self.query_scale = query_scale
        query_size = num_heads * (nope_dim + rope_dim)
        self.q = Linear(hidden_size, query_size) if q_rank is None else None
        self.q_a = None if q_rank is None else Linear(hidden_size, q_rank, bias)
        self.q_norm = None if q_rank is None else RMSNorm(q_rank, eps)
        self.q_b = None if q_rank is None else Linear(q_rank, query_size)
        self.kv_a = Linear(hidden_size, rank + rope_dim, bias)
        self.kv_norm = RMSNorm(rank, eps)
        self.kv_b = HeadLinear(rank, num_heads, nope_dim, value_dim)
        self.o = Linear(num_heads * value_dim, hidden_size, bias)
        self.state = PagedKV(1, rank + rope_dim, 0)  # values are the latents, a part of the keys
        self.state_index = -1

    def split(self, split: Split) -> None:
        """See octavo.parts.split: heads are divided, and every rank has the latents of all tokens."""
        first, end = split.even(self.num_heads, "attention heads")
        query = self.q if self.q is not None else self.q_b
        assert query is not None
        size = self.nope_dim + self.rope_dim
        query.split_outputs((first * size, end * size))
        self.kv_b.split_heads((first, end))
        self.o.split_inputs(split, (first * self.value_dim, end * self.value_dim))
        self.num_heads = end - first

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._spec = AttentionSpec(self.num_heads, 1, self.rank + self.rope_dim, self.scale)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, tokens = batch.paged(self.state_index), batch.num_tokens
        cos, sin = self.rope.angles(batch)
        angles, interleaved = (cos[:tokens], sin[:tokens]), self.rope.interleaved
        latent, key_rope = torch.split(self.kv_a(x, batch)[:tokens], [self.rank, self.rope_dim], dim=1)
        join = self._backend.join_rope
        key = join(norm_rows(self.kv_norm, latent, batch).unsqueeze(1), key_rope.unsqueeze(1), angles, interleaved)
        self._backend.store(key, None, view.cache, view.plan)

        inner = self._inner(x, batch)
        query, query_rope = torch.split(self._query(inner, batch)[:tokens], [self.nope_dim, self.rope_dim], dim=-1)
        query = join(self.kv_b.absorb_keys(query, batch), query_rope, angles, interleaved)
        if self.query_scale is not None:
            query = self._backend.scale_rows(query, self.query_scale.factors(batch)[:tokens])
        lists = self.key_lists(x, inner, batch)
        mixed = self._backend.attend_stored(query, view.cache, view.plan, self._spec, x.shape[0], torch.float32, lists)
        out = self.kv_b.values(mixed[..., : self.rank], x.dtype, batch)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]

    def key_lists(self, x: Tensor, inner: Tensor, batch: Batch) -> Tensor | None:
        """Which keys each row sees, as `Backend.select_keys` gives them, by the queries' inner values; None for all."""
        return None

    def _inner(self, x: Tensor, batch: Batch) -> Tensor:
        """What queries are made of: [rows, q_rank], or the stream itself."""
        if self.q_a is None:
            return x
        assert self.q_norm is not None
        return norm_rows(self.q_norm, self.q_a(x, batch), batch)

    def _query(self, inner: Tensor, batch: Batch) -> Tensor:
        """[rows, heads, nope_dim + rope_dim]"""
        product = self.q if self.q is not None else self.q_b
        assert product is not None
        return product(inner, batch).view(inner.shape[0], self.num_heads, -1)  # type: ignore[no-any-return]
