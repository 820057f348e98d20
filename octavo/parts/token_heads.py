"""bge-m3's heads of each token (Chen et al. 2024): a weight for sparse retrieval, a vector for late interaction."""

import torch
from torch import Tensor, nn

from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear


class TokenHeads(nn.Module):
    """Heads beside a model's embeddings.

    Args:
        hidden_size: of the rows.
        has_sparse: whether there is one that gives a token's weight.
        vector_size: values of a token's vector; None where no head gives one.
        first, last: the tokens that texts begin and end with, which have no weight, and the first no vector.
    """

    def __init__(
        self, hidden_size: int, *, has_sparse: bool, vector_size: int | None, first: int | None, last: int | None
    ) -> None:
        super().__init__()
        self.sparse = Linear(hidden_size, 1, bias=True, exact=True) if has_sparse else None
        self.colbert = None if vector_size is None else Linear(hidden_size, vector_size, bias=True, exact=True)
        self.first, self.last = first, last

    def weights(self, x: Tensor, batch: Batch) -> Tensor:
        """`[rows, 1]`, none of them negative."""
        assert self.sparse is not None
        return torch.relu(self.sparse(x, batch))

    def vectors(self, x: Tensor, batch: Batch) -> Tensor:
        """`[rows, vector_size]`; the rows themselves where no head gives vectors."""
        return x if self.colbert is None else self.colbert(x, batch)
