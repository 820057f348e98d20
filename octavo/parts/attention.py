"""Causal self-attention over a paged cache."""

from torch import Tensor, nn

from octavo.ops import Kernels
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

    def prepare(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.o(self.attend(self.qkv(x), batch))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        """[rows, heads * head_dim] of queries, keys and values side by side, `[rows, width of all three]`."""
        view, rows = batch.paged(self.state_index), qkv.shape[0]
        angles = None if self.rotary is None else self.rotary.angles(batch)
        interleaved = self.rotary is not None and self.rotary.interleaved
        query = self._kernels.rotate_store(
            qkv.view(rows, -1, self.head_dim), angles, interleaved, view.key_cache, view.value_cache, view.plan
        )
        out = qkv.new_zeros(rows, self.heads, self.head_dim)
        self._kernels.paged_attention(
            query,
            view.key_cache,
            view.value_cache,
            view.plan,
            out[: batch.num_tokens],
            self.scale,
            self.softcap,
        )
        return out.flatten(1)
