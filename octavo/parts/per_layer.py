"""Per-layer embeddings (Gemma 3n): a token has a small vector for each layer, which the layer mixes in."""

import math

from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.embedding import Embedding
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.norms import Norm, norm_each
from octavo.parts.split import Split
from octavo.parts.stage import KeptRows

PER_LAYER = "per_layer"
"""What the vectors of all layers are called among what a step keeps."""


class PerLayerEmbedding(nn.Module):
    """Token embeddings. Beside them it keeps, for each layer, a vector of the token and one of its embedding, mixed.

    Args:
        tokens: the table of token embeddings.
        table: each token's vectors, of all layers side by side.
        norm: of one layer's part of what comes of the embedding.
    """

    keeps = (PER_LAYER,)

    def __init__(self, tokens: Embedding, table: Embedding, norm: Norm) -> None:
        super().__init__()
        self.tokens, self.table, self.norm = tokens, table, norm
        self.project = Linear(tokens.embedding_dim, table.embedding_dim)

    @property
    def kept_rows(self) -> dict[str, KeptRows]:
        """How rows of what goes on to later stages look."""
        return {PER_LAYER: KeptRows(self.table.embedding_dim)}

    def prepare(self, backend: Backend) -> None:
        self._add, self._scale = backend.add, backend.scale

    def forward(self, batch: Batch) -> Tensor:
        x: Tensor = self.tokens(batch)
        projected = self._scale(self.project(x, batch), self.tokens.embedding_dim**-0.5)
        both = self._add(norm_each(self.norm, projected, batch), self.table.of_batch(batch))
        batch.kept[PER_LAYER] = self._scale(both, math.sqrt(0.5))
        return x


class PerLayerInput(nn.Module):
    """`project(activation(gate(x)) * vector)`, with a layer's own vector of PerLayerEmbedding.

    Args:
        hidden_size: of the rows.
        size: values of a vector.
        layer: the number of the layer.
        activation: a name in octavo.ops.ACTIVATIONS.
    """

    mixes = (PER_LAYER,)

    def __init__(self, hidden_size: int, size: int, layer: int, activation: str) -> None:
        super().__init__()
        check_activation(activation)
        self.gate, self.project = Linear(hidden_size, size), Linear(size, hidden_size)
        self.first, self.size, self.activation = layer * size, size, activation

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        first, end = split.share(self.size)
        self.gate.split_outputs((first, end))
        self.project.split_inputs(split, (first, end))
        self.first, self.size = self.first + first, end - first

    def prepare(self, backend: Backend) -> None:
        self._multiply = backend.multiply

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        vectors = batch.kept[PER_LAYER][:, self.first : self.first + self.size]
        gated = self._multiply(vectors, self.gate(x, batch), self.activation)
        return self.project(gated, batch)  # type: ignore[no-any-return]
