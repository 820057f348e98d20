"""Queries that grow with their positions, so that attention stays sharp over long contexts."""

from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch


class QueryScale(nn.Module):
    """Factors of queries, `1 + beta * log(1 + floor((position + offset) / period))` (Llama 4, Ministral 3).

    Args:
        beta: how much they grow.
        period: positions that share a factor.
        offset: added to positions (1 in Llama 4).
    """

    def __init__(self, beta: float, period: float, offset: int = 0) -> None:
        super().__init__()
        self.beta, self.period, self.offset = beta, period, offset

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def factors(self, batch: Batch) -> Tensor:
        """`[rows]` float32 of the batch's positions, along the first axis where they have several; once a step."""
        positions = batch.positions if batch.positions.dim() == 1 else batch.positions[0]
        key = ("query scale", self.beta, self.period, self.offset)
        return batch.once(key, lambda: self._backend.position_factors(positions, self.beta, self.period, self.offset))
