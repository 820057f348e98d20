"""Token and position embeddings: the first part of a model, called on a batch."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, PackedLinear
from octavo.parts.batch import Batch, EncoderBatch
from octavo.parts.weight_slots import Role, WeightSlot


class Embedding(nn.Module):
    """A row of a table `[num_embeddings, embedding_dim]` a token, times `scale` (in the activations' dtype).

    The table is plain, or a weight packed for products, as a head that is tied to it needs it.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.scale = scale
        self.weight: nn.Parameter | None = None
        self._packed: PackedLinear | None = None

    def weight_slots(self) -> dict[str, WeightSlot]:
        """The table; CausalLM says which is the tokens'."""
        return {"weight": WeightSlot((self.num_embeddings, self.embedding_dim), Role.ADDED, self.load)}

    def load(self, table: Tensor | PackedLinear, dtype: torch.dtype = torch.float32) -> None:
        """Take the table; of a packed one, rows are read in `dtype`."""
        if isinstance(table, Tensor):
            self.weight = nn.Parameter(table, requires_grad=False)
        else:
            self._packed, self._dtype = table, dtype
            self.scale = float(torch.tensor(self.scale, dtype=dtype))

    def prepare(self, backend: Backend) -> None:
        self._table_rows, self._scale = backend.table_rows, backend.scale

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        rows = self.of(batch.tokens)
        features = batch.features if isinstance(batch, Batch) else None
        return rows if features is None else features.put(rows)

    def of(self, ids: Tensor) -> Tensor:
        """Rows of tokens `ids` `[count]`: `[count, embedding_dim]`."""
        if self._packed is not None:
            return self._packed.rows(ids, self._dtype, self.scale)
        rows = self.lookup(ids)
        return rows if self.scale == 1.0 else self._scale(rows, self.scale)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows `ids` of a plain table, without the scale."""
        assert self.weight is not None, "weights are loaded before anything is computed"
        return self._table_rows(self.weight, ids)


class PositionedEmbedding(nn.Module):
    """Token embeddings plus learned positions (GPT-2), their sum times `scale` (Jais). Both are Embeddings."""

    def __init__(self, tokens: Embedding, positions: Embedding, scale: float = 1.0) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.scale = scale

    def prepare(self, backend: Backend) -> None:
        self._add, self._scale = backend.add, backend.scale

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        x = self._add(self.tokens(batch), self.positions.lookup(batch.positions))
        return x if self.scale == 1.0 else self._scale(x, self.scale)


class NormedEmbedding(nn.Module):
    """Token embeddings with a norm behind them (BLOOM, BART)."""

    def __init__(self, tokens: Embedding | PositionedEmbedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = norm

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return self.norm(self.tokens(batch))  # type: ignore[no-any-return]
