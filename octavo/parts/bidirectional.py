"""Self-attention of text encoders: each token of a prompt sees all of it, in one pass over a flat batch.

Nothing is kept between steps, so a prompt comes whole, and there is no padding between prompts.
"""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, DistanceBias
from octavo.parts.batch import Batch
from octavo.parts.encoder import norm_heads
from octavo.parts.linear_layer import Linear
from octavo.parts.qk_transform import QKNorm
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.self_attention import HeadsBias
from octavo.parts.split import HeadSplit, Split


class BidirectionalAttention(nn.Module):
    """Multi-head attention with grouped queries in which a prompt's tokens all see each other.

    Args:
        hidden_size: of the residual stream.
        num_heads, num_kv_heads: query heads, and key and value heads (a divisor of them; None for as many).
        head_dim: values of a head; None for an even share of `hidden_size`.
        rope: rotates queries and keys; None where positions come otherwise.
        bias, out_bias: biases of q, k, v and of the output (None for the same).
        scale: of the scores; head_dim ** -0.5 if None.
        qk_norm: norms of queries and keys, before rope.
        position_bias: gives heads `first` to `end` their bias by distance: a RelativeBias's `of_heads`.
        window: how many tokens on each side a query sees; None for all.
    """

    reads_whole = True
    """All of a prompt is computed in one step."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        rope: RotaryEmbedding | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        scale: float | None = None,
        qk_norm: QKNorm | None = None,
        position_bias: HeadsBias | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % kv_heads or (head_dim is None and hidden_size % num_heads):
            raise ValueError(f"{num_heads} heads cannot share {hidden_size} values, or {kv_heads} heads of keys")
        self.num_heads, self.num_kv_heads = num_heads, kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.rope, self.qk_norm = rope, qk_norm
        self.position_bias, self.window, self.first_head = position_bias, window, 0
        size, kv_size = num_heads * self.head_dim, kv_heads * self.head_dim
        self.qkv = Linear(hidden_size, {"q": size, "k": kv_size, "v": kv_size}, bias)
        self.o = Linear(size, hidden_size, bias if out_bias is None else out_bias)

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = HeadSplit(split, self.num_heads, self.num_kv_heads, self.head_dim)
        if self.qk_norm is not None:
            self.qk_norm.split_heads(own)
        self.qkv.split_outputs({"q": own.values, "k": own.kv_values, "v": own.kv_values})
        self.o.split_inputs(split, own.values)
        self.first_head = own.heads[0]
        self.num_heads, self.num_kv_heads = own.heads[1] - own.heads[0], own.kv_heads[1] - own.kv_heads[0]

    def prepare(self, backend: Backend) -> None:
        self._attention, self._join_rope = backend.full_attention, backend.join_rope
        self._bias = None
        if self.position_bias is not None:
            self._bias = self.position_bias(self.first_head, self.first_head + self.num_heads)
        elif self.window is not None:
            self._bias = window_bias(self.window, self.num_heads, backend.device)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        query, key, value = self.heads(x, batch)
        runs = [(*run, *run) for run in batch.runs]
        out = self._attention(query, key, value, self.scale, runs, self._bias)
        return self.o(out.flatten(1), batch)  # type: ignore[no-any-return]

    def heads(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[rows, heads, head_dim]`, with positions in them."""
        sizes = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        qkv = self.qkv(x, batch).view(x.shape[0], sum(sizes), self.head_dim)
        query, key, value = torch.split(qkv, sizes, 1)
        if self.qk_norm is not None:
            query = norm_heads(self.qk_norm, self.qk_norm.q, query, batch)
            key = norm_heads(self.qk_norm, self.qk_norm.k, key, batch)
        if self.rope is not None:
            angles, interleaved = self.rope.angles(batch), self.rope.interleaved
            query, key = (self._join_rope(y[..., :0], y, angles, interleaved) for y in (query, key))
        return query.to(x.dtype), key.to(x.dtype), value


def window_bias(window: int, num_heads: int, device: torch.device) -> DistanceBias:
    """What hides keys that are further than `window` tokens away, on either side."""
    table = torch.zeros(num_heads, 2 * window + 3, device=device)
    table[:, 0] = table[:, -1] = -torch.inf
    return DistanceBias(table, window + 1)
