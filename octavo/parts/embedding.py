"""Token and position embeddings: the first part of a model, called on a batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.parts.batch import Batch
from octavo.parts.encoder import EncoderBatch


class Embedding(nn.Module):
    """A row of `weight` `[count, width]` for each token, times `scale` (in the weight's dtype, as Gemma does)."""

    def __init__(self, count: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width), requires_grad=False)
        self.scale = scale

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        rows = self.lookup(batch.tokens)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)

    def lookup(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.weight)


class PositionedEmbedding(nn.Module):
    """Token embeddings plus learned positions (GPT-2). `tokens` and `positions` are Embeddings."""

    def __init__(self, tokens: Embedding, positions: Embedding) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions

    @property
    def weight(self) -> Tensor:
        """The token table, which a tied head shares."""
        return self.tokens.weight

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return self.tokens(batch) + self.positions.lookup(batch.positions)  # type: ignore[no-any-return]


class NormedEmbedding(nn.Module):
    """Token embeddings with a norm behind them (BLOOM, BART)."""

    def __init__(self, tokens: Embedding | PositionedEmbedding, norm: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = norm

    @property
    def weight(self) -> Tensor:
        """The token table, which a tied head shares."""
        return self.tokens.weight

    def forward(self, batch: Batch | EncoderBatch) -> Tensor:
        return self.norm(self.tokens(batch))  # type: ignore[no-any-return]
