"""Multi-head latent attention (DeepSeek-AI 2024): the cache holds one small vector a token, for all heads."""

import torch
from torch import Tensor, nn

from octavo.ops import Kernels, head_product, rotate
from octavo.parts.batch import Batch
from octavo.parts.linear import Linear
from octavo.parts.norm import RMSNorm
from octavo.parts.rotary import Rotary
from octavo.parts.state import PagedKV


class LatentAttention(nn.Module):
    """Attention whose cache holds a normed latent and one rotated key part, shared by all heads.

    Keys and values are never expanded: what would make a head's key of the latent is applied to its query instead, and
    what would make its value to the mixed latents. So it is attention with one key head of `rank + rope_dim` values.

    Args:
        width: of the residual stream.
        heads: how many.
        rank: width of the latent.
        nope_dim, rope_dim, value_dim: of each head, the query's part without and with positions, and the value.
        rotary: turns the part with positions.
        q_rank: inner width of the query's projection; None where it is a single one.
        eps: of the norms of the latent and of the query's inner width.
        bias: of the projections from and to the residual stream, but not of a single query projection.
        scale: of the scores; (nope_dim + rope_dim) ** -0.5 if None.
    """

    float32_parameters = True  # kv_b; the projections are Linears of their own

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rank: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        rotary: Rotary,
        q_rank: int | None,
        eps: float,
        bias: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.rank, self.rotary = heads, rank, rotary
        self.nope_dim, self.rope_dim, self.value_dim = nope_dim, rope_dim, value_dim
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        query_width = heads * (nope_dim + rope_dim)
        self.q = Linear(width, query_width) if q_rank is None else None
        self.q_a = None if q_rank is None else Linear(width, q_rank, bias)
        self.q_norm = None if q_rank is None else RMSNorm(q_rank, eps)
        self.q_b = None if q_rank is None else Linear(q_rank, query_width)
        self.kv_a = Linear(width, rank + rope_dim, bias)
        self.kv_norm = RMSNorm(rank, eps)
        self.kv_b = nn.Parameter(torch.empty(heads * (nope_dim + value_dim), rank), requires_grad=False)
        self.o = Linear(heads * value_dim, width, bias)
        self.state = PagedKV(1, rank + rope_dim, 0)  # values are the latents, a part of the keys
        self.state_index = -1

    def prepare(self, kernels: Kernels) -> None:
        self._kernels = kernels
        heads = self.kv_b.data.view(self.heads, self.nope_dim + self.value_dim, self.rank)
        self._to_key = heads[:, : self.nope_dim].contiguous()
        """[heads, nope_dim, rank]"""
        self._to_value = heads[:, self.nope_dim :].transpose(1, 2).contiguous()
        """[heads, rank, value_dim]"""
        del self.kv_b

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        view, tokens = batch.paged(self.state_index), batch.num_tokens
        cos, sin = (part[:tokens] for part in self.rotary.angles(batch))
        interleaved = self.rotary.interleaved
        latent, key_turn = torch.split(self.kv_a(x)[:tokens], [self.rank, self.rope_dim], dim=1)
        key = torch.cat(
            [self.kv_norm(latent).float().unsqueeze(1), rotate(key_turn.unsqueeze(1), cos, sin, interleaved)], dim=-1
        )
        self._kernels.write_kv(view.key_cache, key, view.plan)

        query, query_turn = torch.split(self._query(x)[:tokens], [self.nope_dim, self.rope_dim], dim=-1)
        absorbed = head_product(query.float(), self._to_key)
        query = torch.cat([absorbed, rotate(query_turn, cos, sin, interleaved)], dim=-1)
        mixed = self._kernels.paged_attention(
            query, view.key_cache, view.key_cache, view.plan, tokens, torch.float32, self.scale
        )
        out = x.new_zeros(x.shape[0], self.heads * self.value_dim)
        out[:tokens] = head_product(mixed[..., : self.rank], self._to_value).flatten(1).to(x.dtype)
        return self.o(out)  # type: ignore[no-any-return]

    def _query(self, x: Tensor) -> Tensor:
        """[rows, heads, nope_dim + rope_dim]"""
        if self.q is not None:
            query = self.q(x)
        else:
            assert self.q_a is not None
            assert self.q_norm is not None
            assert self.q_b is not None
            query = self.q_b(self.q_norm(self.q_a(x)))
        return query.view(x.shape[0], self.heads, -1)  # type: ignore[no-any-return]
