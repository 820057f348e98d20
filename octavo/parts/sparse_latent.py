"""DeepSeek sparse attention (DeepSeek-AI 2025): latent attention to the keys that an indexer finds best."""

from typing import Any

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.latent import LatentAttention
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import LayerNorm, norm_rows
from octavo.parts.rotary_embedding import RotaryEmbedding
from octavo.parts.stage import KeptRows
from octavo.parts.state import PagedKV


class Indexer(nn.Module):
    """Lists the keys that each token attends to: the best of those before it, by heads and keys of its own.

    Ranks that share a layer compute it whole, so that all have the same lists.

    Args:
        hidden_size: of the residual stream.
        q_rank: of the queries' inner values, which its queries are made of.
        num_heads, head_dim: of its queries; all heads have one key.
        rope_dim: how many values of a head, the first ones, are rotated.
        top_k: keys in a list, at most.
        rope: the rotation, by the angles of the attention's.
        interleaved: rotary pairs are neighbours, whatever `rope` has for the attention's.
    """

    eps = 1e-6
    """Of its norm of keys."""

    def __init__(
        self,
        hidden_size: int,
        q_rank: int,
        *,
        num_heads: int,
        head_dim: int,
        rope_dim: int,
        top_k: int,
        rope: RotaryEmbedding,
        interleaved: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.rope_dim, self.top_k = num_heads, rope_dim, top_k
        self.rope, self.interleaved = rope, interleaved
        self.q = Linear(q_rank, num_heads * head_dim)
        self.k = Linear(hidden_size, head_dim)
        self.k_norm = LayerNorm(head_dim, self.eps)
        self.head_weights = Linear(hidden_size, num_heads, exact=True)
        self.state = PagedKV(1, head_dim, 0)
        self.state_index = -1

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def forward(self, x: Tensor, inner: Tensor, batch: Batch) -> Tensor:
        """Positions `[rows, top_k]` int32, as `Backend.select_keys` gives them.

        What the published code multiplies scores with changes none of their order, and is left out.

        Args:
            x: [rows, hidden_size]
            inner: [rows, q_rank]
            batch: the step.
        """
        view, tokens, backend = batch.paged(self.state_index), batch.num_tokens, self._backend
        key = norm_rows(self.k_norm, self.k(x, batch), batch)[:tokens].unsqueeze(1)
        backend.store(self._rotated(key, batch), None, view.cache, view.plan)
        query = self._rotated(self.q(inner, batch)[:tokens].view(tokens, self.num_heads, -1), batch)
        weights = backend.floats(self.head_weights(x, batch)[:tokens])
        return backend.select_keys(query, weights, view.cache, view.plan, self.top_k, x.shape[0])

    def _rotated(self, heads: Tensor, batch: Batch) -> Tensor:
        """`[tokens, heads, head_dim]` in float32, the rotated values last: products do not depend on the place."""
        cos, sin = self.rope.angles(batch)
        angles = cos[: len(heads)], sin[: len(heads)]
        return self._backend.join_rope(
            heads[..., self.rope_dim :], heads[..., : self.rope_dim], angles, self.interleaved
        )


class SparseLatentAttention(LatentAttention):
    """Latent attention to the keys that its indexer lists, or that of an earlier layer.

    Args:
        hidden_size, num_heads: as LatentAttention has them.
        indexer: what lists keys; None where an earlier layer's list is taken.
        list_name: what layers that share a list call it; empty where it is shared with none.
        is_last_reader: whether no later layer takes that list.
        options: more of LatentAttention's arguments.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        indexer: Indexer | None,
        list_name: str = "",
        is_last_reader: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(hidden_size, num_heads, **options)
        self.indexer, self.list_name, self.is_last_reader = indexer, list_name, is_last_reader
        self.keeps = (list_name,) if indexer is not None and list_name else ()
        self.mixes = (list_name,) if indexer is None else ()

    @property
    def kept_rows(self) -> dict[str, KeptRows]:
        """How rows of what goes on to later stages look."""
        return {} if self.indexer is None else dict.fromkeys(self.keeps, KeptRows(self.indexer.top_k, torch.int32))

    def key_lists(self, x: Tensor, inner: Tensor, batch: Batch) -> Tensor:
        if self.indexer is None:
            return batch.kept.pop(self.list_name) if self.is_last_reader else batch.kept[self.list_name]
        lists: Tensor = self.indexer(x, inner, batch)
        if self.list_name:
            batch.kept[self.list_name] = lists
        return lists
