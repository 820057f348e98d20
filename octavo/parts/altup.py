"""AltUp (Baykal et al. 2023): several residual streams, of which a layer computes with one and predicts the others."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.embedding import Embedding
from octavo.parts.linear_layer import Linear
from octavo.parts.norms import Norm, RMSNorm, norm_rows
from octavo.parts.per_layer import PerLayerEmbedding

LEAST_MAGNITUDE = 1e-5
"""Mean square of a stream at least, where its magnitude is divided by."""


class AltUp(nn.Module):
    """What a layer makes of the streams, side by side in `x` `[rows, streams * hidden_size]`, before and after it.

    Args:
        hidden_size: of a stream.
        streams: how many there are.
        active: which of them the layer computes with.
        eps: of the norm of what decides how streams are mixed.
        is_scaled: whether `active_of` of the corrected streams is scaled by column.
    """

    float32_parameters = True

    def __init__(self, hidden_size: int, streams: int, active: int, eps: float, is_scaled: bool) -> None:
        super().__init__()
        self.router_norm = RMSNorm(hidden_size, eps)
        self.router = Linear(hidden_size, streams, exact=True)
        self.mix = Linear(streams, streams * streams, exact=True)
        self.gain = Linear(streams, streams, exact=True)
        self.scale = nn.Parameter(torch.empty(hidden_size), requires_grad=False) if is_scaled else None
        self.hidden_size, self.active = hidden_size, active

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def active_of(self, x: Tensor) -> Tensor:
        """The active stream, `[rows, hidden_size]`."""
        return x[:, self.active * self.hidden_size : (self.active + 1) * self.hidden_size]

    def _modes(self, x: Tensor, batch: Batch) -> Tensor:
        """`[rows, streams]`, by the active stream."""
        return self._backend.activate(self.router(norm_rows(self.router_norm, x, batch), batch), "tanh")

    def predicted(self, x: Tensor, batch: Batch) -> Tensor:
        """The streams as the layer finds them."""
        mix = self._backend.floats(self.mix(self._modes(self.active_of(x), batch), batch))
        return self._backend.predict_streams(x, mix)

    def corrected(self, predicted: Tensor, y: Tensor, batch: Batch) -> Tensor:
        """All streams, by what the layer has made of the active one, `y` `[rows, hidden_size]`."""
        gains = self._backend.floats(self.gain(self._modes(y, batch), batch))
        return self._backend.correct_streams(predicted, y, gains, self.active)

    def scaled(self, x: Tensor) -> Tensor:
        """The active stream of corrected ones, each of its columns times a factor."""
        active = self.active_of(x)
        return active if self.scale is None else self._backend.scale_columns(active, self.scale)


class AltUpEmbedding(PerLayerEmbedding):
    """Per-layer embeddings, and streams made of the token's embedding: itself first, and projections as large as it.

    Args:
        tokens, table, norm: as PerLayerEmbedding has them.
        streams: how many there are.
    """

    def __init__(self, tokens: Embedding, table: Embedding, norm: Norm, streams: int) -> None:
        super().__init__(tokens, table, norm)
        size = tokens.embedding_dim
        self.streams = nn.ModuleList([Linear(size, size) for _ in range(streams - 1)])

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._backend = backend

    def forward(self, batch: Batch) -> Tensor:
        x = y = super().forward(batch)
        for project in self.streams:
            other = self._backend.match_magnitude(project(x, batch), x, LEAST_MAGNITUDE)
            y = self._backend.side_by_side(y, other)
        return y


class StreamMerge(nn.Module):
    """The mean of the streams `[rows, streams * hidden_size]`, the first as it is, the others projected; then a norm.

    Args:
        norm: of `hidden_size` values.
        streams: how many there are.
    """

    def __init__(self, norm: RMSNorm, streams: int) -> None:
        super().__init__()
        self.streams = nn.ModuleList([Linear(norm.size, norm.size) for _ in range(streams - 1)])
        self.norm = norm

    def prepare(self, backend: Backend) -> None:
        self._backend = backend

    def merged(self, x: Tensor, batch: Batch) -> Tensor:
        """`[rows, hidden_size]`"""
        first, *others = torch.split(x, self.norm.size, dim=1)
        total = first
        for project, stream in zip(self.streams, others, strict=True):
            same = self._backend.match_magnitude(project(stream, batch), first, LEAST_MAGNITUDE)
            total = self._backend.add(total, same)
        return norm_rows(self.norm, self._backend.scale(total, 1.0 / (1 + len(others))), batch)
