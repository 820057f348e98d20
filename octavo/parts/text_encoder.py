"""Encoders of texts (Devlin et al. 2019): embeddings, layers that see a whole prompt, and heads for scores."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from octavo.config import PoolerConfig
from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.causal_lm import CausalLM
from octavo.parts.embedding import Embedding
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.names import Names
from octavo.parts.norms import norm_rows


class TextEmbedding(nn.Module):
    """Tokens plus learned positions and types of tokens, a norm behind them, and a projection to another size.

    Args:
        tokens, positions, types: tables; None for those that the model lacks.
        norm: behind their sum.
        project: to hidden_size, where the tables are narrower (ELECTRA).
    """

    def __init__(
        self,
        tokens: Embedding,
        positions: Embedding | None = None,
        types: Embedding | None = None,
        norm: nn.Module | None = None,
        project: Linear | None = None,
    ) -> None:
        super().__init__()
        self.tokens, self.positions, self.types = tokens, positions, types
        self.norm, self.project = norm, project

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def added(self, batch: Batch) -> Tensor:
        """What the tables have for the batch's rows, in one."""
        x = self.tokens(batch)
        if self.types is not None:
            x = self._add(x, self.types.lookup(batch.types_of_tokens().clamp(max=self.types.num_embeddings - 1)))
        if self.positions is not None:
            x = self._add(x, self.positions.lookup(batch.positions))
        return x  # type: ignore[no-any-return]

    def forward(self, batch: Batch) -> Tensor:
        x = self.added(batch)
        x = x if self.norm is None else norm_rows(self.norm, x, batch)
        return x if self.project is None else self.project(x, batch)


class TextEncoder(CausalLM):
    """A model of texts without a head for tokens: what embeddings, and scores by `score_with`, are made of.

    Args:
        embed: tokens of a batch to `[rows, hidden_size]`.
        layer: makes the layer of a given index.
        layers: how many there are.
        hidden_size: of the rows between layers.
        names: published tensor names to the parts.
        norm: the last norm; None for none.
        pooling: how rows become one answer, where nothing else says it.
    """

    def __init__(
        self,
        embed: nn.Module,
        layer: Callable[[int], nn.Module],
        layers: int,
        hidden_size: int,
        names: Names,
        *,
        norm: nn.Module | None = None,
        pooling: PoolerConfig | None = None,
        **options: Any,
    ) -> None:
        table = next(m for m in embed.modules() if isinstance(m, Embedding))
        head = Linear(hidden_size, table.num_embeddings)
        super().__init__(embed, layer, layers, nn.Identity() if norm is None else norm, head, names, **options)
        self.hidden_size = self.stream_size = hidden_size
        self.pooling = pooling or PoolerConfig("MEAN")
        self.drop_head()


class ScoreHead(nn.Module):
    """`out(norm(activation(dense(x))))`: scores of a pooled row.

    Args:
        hidden_size: of the rows.
        scores: how many.
        activation: a name in octavo.ops.ACTIVATIONS.
        bias: of `dense`.
        out_bias: of `out`.
        norm: of what the activation gives; None for none.
    """

    def __init__(
        self,
        hidden_size: int,
        scores: int,
        activation: str,
        *,
        bias: bool = True,
        out_bias: bool = True,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.dense = Linear(hidden_size, hidden_size, bias, exact=True)
        self.norm = norm
        self.out = Linear(hidden_size, scores, out_bias, exact=True)
        self.activation = activation

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        x = self._activate(self.dense(x, batch), self.activation)
        return self.out(x if self.norm is None else norm_rows(self.norm, x, batch), batch)  # type: ignore[no-any-return]
