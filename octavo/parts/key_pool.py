"""Keys that are pooled of several tokens each, and an indexer that finds the best of them (DeepSeek-AI 2026)."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PooledKeys, PoolSpec
from octavo.parts.batch import Batch, PagedView
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import RMSNorm, norm_rows
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.state import PagedKV


class PagedState(nn.Module):
    """A state that a part has beside its own."""

    def __init__(self, state: PagedKV) -> None:
        super().__init__()
        self.state, self.state_index = state, -1

    def view(self, batch: Batch) -> PagedView:
        """Its cache, and where a step's tokens stand in it."""
        return batch.paged(self.state_index)


class KeyPool(nn.Module):
    """Makes an entry of every `ratio` tokens: the mean of their values by learned gates, normed and rotated.

    What tokens of a group that is not complete have given lies in blocks with a window, exact to the bit. So entries
    are the same however a prompt is cut into steps, wherever a prefix was found, and when tokens are computed again.

    Args:
        hidden_size: of the rows.
        dim: values of an entry.
        ratio: tokens of a group.
        is_overlapping: whether an entry is of the group before too, each token having values and gates for either.
        window: of the attention around it, in whose blocks those tokens lie, if it reaches as far.
        rope: rotates an entry's last values by the position of its group's first token.
        eps: of the norm.
    """

    float32_parameters = True

    def __init__(
        self,
        hidden_size: int,
        dim: int,
        *,
        ratio: int,
        is_overlapping: bool,
        window: int,
        rope: RotaryEmbedding,
        eps: float,
    ) -> None:
        super().__init__()
        self.ratio, self.is_overlapping, self.rope = ratio, is_overlapping, rope
        width = dim * (2 if is_overlapping else 1)
        self.values_gates = Linear(hidden_size, {"values": width, "gates": width}, exact=True)
        self.bias = nn.Parameter(torch.empty(ratio, width), requires_grad=False)
        self.norm = RMSNorm(dim, eps)
        reach = ratio * (2 if is_overlapping else 1)
        self.tokens = PagedState(PagedKV(1, 2 * width, 0, max(window, reach), is_exact=True))
        self.entries = PagedState(PagedKV(1, dim, 0, tokens_per_row=ratio))

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._spec = PoolSpec(self.ratio, self.is_overlapping, self.bias.data)

    def forward(self, x: Tensor, batch: Batch) -> PooledKeys:
        """Stores what rows `x` `[rows, hidden_size]` complete, and gives all that there is."""
        backend, tokens, entries = self._backend, self.tokens.view(batch), self.entries.view(batch)
        rows = self.values_gates(x, batch)[: batch.num_tokens]
        backend.store(rows.unsqueeze(1), None, tokens.cache, tokens.plan)
        pooled = norm_rows(self.norm, backend.pool_keys(tokens.cache, tokens.plan, self._spec), batch)
        angles = self.rope.angles(batch, 1 - self.ratio)  # of the group's first token
        turned = backend.rotate_tail(pooled.unsqueeze(1), angles, self.rope.interleaved)
        backend.store_pooled(turned.flatten(1), entries.cache, entries.plan, self.ratio)
        return PooledKeys(entries.cache, entries.plan, self.ratio)


class KeyIndexer(nn.Module):
    """Finds the entries that a token attends to, by keys of its own: `sum over heads of weight * max(q . k, 0)`.

    Args:
        hidden_size: of the rows.
        query_size: of what queries are made of.
        num_heads, dim: its heads.
        top_k: how many entries a token sees at most.
        pool: makes its keys.
    """

    def __init__(
        self, hidden_size: int, query_size: int, num_heads: int, dim: int, *, top_k: int, pool: KeyPool
    ) -> None:
        super().__init__()
        self.num_heads, self.dim, self.top_k, self.pool = num_heads, dim, top_k, pool
        self.from_latent = Linear(query_size, num_heads * dim)
        self.weights = Linear(hidden_size, num_heads, exact=True)

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def forward(self, inner: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """`[rows, top_k]` int32, as `Backend.select_keys` gives them, by `inner` `[rows, query_size]` and `x`."""
        keys, tokens, rope = self.pool(x, batch), batch.num_tokens, self.pool.rope
        query = self.from_latent(inner, batch)[:tokens].view(tokens, self.num_heads, self.dim)
        query = self._backend.rotate_tail(query, rope.angles(batch), rope.interleaved)
        weights = self._backend.floats(self.weights(x, batch)[:tokens])
        weights = self._backend.scale(weights, (self.dim * self.num_heads) ** -0.5)
        return self._backend.select_keys(query, weights, keys.cache, keys.plan, self.top_k, len(x), keys.ratio)
