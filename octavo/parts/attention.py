"""Causal self-attention over a paged cache."""

import torch
from torch import Tensor, nn

from octavo import ops
from octavo.parts.batch import Batch
from octavo.parts.linear import Linear
from octavo.parts.rotary import Rotary
from octavo.parts.state import PagedKV


class Attention(nn.Module):
    """Multi-head attention with grouped queries.

    Args:
        width: of the residual stream.
        heads, kv_heads: query heads, and key and value heads (a divisor of them).
        head_dim: width of a head.
        rotary: turns queries and keys; None where positions come otherwise.
        bias, out_bias: biases of q, k, v and of the output.
        scale: of the scores; head_dim ** -0.5 if None.
        window: how many of the last tokens a query sees; None for all.
        softcap: of the scores (Gemma 2).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        rotary: Rotary | None = None,
        bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap = softcap
        self.rotary = rotary
        sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
        self.qkv = Linear(width, sizes, bias)
        self.o = Linear(heads * head_dim, width, out_bias)
        self.state = PagedKV(kv_heads, head_dim, head_dim, window)
        self.state_index = -1

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        turned = self.heads + self.kv_heads
        query_key, value = heads[:, :turned], heads[:, turned:]
        if self.rotary is not None:
            query_key = self.rotary(query_key, batch)
        return self.o(self.attend(query_key, value, batch).to(x.dtype))  # type: ignore[no-any-return]

    def attend(self, query_key: Tensor, value: Tensor, batch: Batch) -> Tensor:
        """[rows, heads * head_dim] float32 of queries and keys `[rows, heads + kv_heads, head_dim]` and values."""
        view, rows = batch.paged(self.state_index), batch.num_tokens
        query, key = query_key[:, : self.heads], query_key[:, self.heads :]
        ops.write_kv(view.key_cache, key[:rows], view.plan)
        ops.write_kv(view.value_cache, value[:rows], view.plan)
        out = ops.paged_attention(
            query[:rows], view.key_cache, view.value_cache, view.plan, self.scale, self.softcap
        ).flatten(1)
        return torch.nn.functional.pad(out, (0, 0, 0, query.shape[0] - rows)) if rows < query.shape[0] else out
