"""Token and position embeddings: the first part of a model, called on a batch."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedLinear
from octavo.parts.batch import Batch, EncoderBatch


class Embedding(nn.Module):
    """A row of `weight` `[num_embeddings, embedding_dim]` a token, times `scale` (in the activations' dtype).

    The table is plain, or a weight laid out for products, which a tied head then shares with it (`read_from`).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(num_embeddings, embedding_dim), requires_grad=False)
        self.scale = scale
        self._table: PackedLinear | None = None
        self._dtype = torch.float32

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def read_from(self, table: PackedLinear, dtype: torch.dtype) -> None:
        """Take rows from `table` from now on, in `dtype`, and drop the plain one."""
        self._table, self._dtype, self.weight = table, dtype, None
        self.scale = float(torch.tensor(self.scale, dtype=dtype))

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        if self._table is not None:
            return self._table.rows(batch.tokens, self._dtype, self.scale)
        rows = self.lookup(batch.tokens)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)

    def lookup(self, index: Tensor) -> Tensor:
        assert self.weight is not None
        return self._backend.table_rows(self.weight.data, index)


class PositionedEmbedding(nn.Module):
    """Token embeddings plus learned positions (GPT-2), their sum times `scale` (Jais). Both are Embeddings."""

    def __init__(self, tokens: Embedding, positions: Embedding, scale: float = 1.0) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.scale = scale

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        x = self._add(self.tokens(batch), self.positions.lookup(batch.positions))
        return x if self.scale == 1.0 else x * torch.tensor(self.scale, dtype=x.dtype, device=x.device)


class NormedEmbedding(nn.Module):
    """Token embeddings with a norm behind them (BLOOM, BART)."""

    def __init__(self, tokens: Embedding | PositionedEmbedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = norm

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return self.norm(self.tokens(batch))  # type: ignore[no-any-return]
