"""Hyper-connections (Zhu et al. 2024): several residual streams, which each piece reads, writes and mixes by weights.

The streams of a row lie side by side, `[rows, count * hidden_size]`. Weights are made of the streams themselves, and
what mixes them is kept near doubly stochastic (Xie et al. 2026).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.ops import Backend, StreamSpec
from octavo.parts.batch import Batch
from octavo.parts.causal_lm import CausalLM
from octavo.parts.embedding import Embedding
from octavo.parts.norms import PlainRMSNorm
from octavo.parts.wiring import Wiring


class StreamWeights(nn.Module):
    """What a piece reads of the streams, and the weights by which it writes to them and mixes them.

    Args:
        hidden_size: of a stream.
        count: of streams.
        norm_eps: of the norm of all streams of a row, of which weights are made.
        eps: added to weights.
        iterations: how often mixing weights are divided by their sums; None where nothing is written.
    """

    float32_parameters = True

    def __init__(
        self, hidden_size: int, count: int, *, norm_eps: float, eps: float, iterations: int | None = None
    ) -> None:
        super().__init__()
        self.hidden_size, self.count, self.eps, self.iterations = hidden_size, count, eps, iterations
        weights = count if iterations is None else count * (2 + count)
        self.weight = nn.Parameter(torch.empty(weights, count * hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(weights), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(1 if iterations is None else 3), requires_grad=False)
        self.norm = PlainRMSNorm(count * hidden_size, norm_eps)

    def prepare(self, backend: Backend) -> None:
        self._backend, self._products = backend, backend.linear(self.weight.data)
        self._spec = StreamSpec(self.count, self.scale.data, self.bias.data, self.eps, self.iterations or 0)
        del self.weight  # as the backend computes with it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[rows, hidden_size]` of streams `x`, and the weights for `Backend.mix_streams`."""
        products = self._products(self.norm(self._backend.floats(x)))
        read, weights = self._backend.stream_weights(products, self._spec)
        return self._backend.weighted_sum(x.view(-1, self.hidden_size), read, read.shape[1]), weights


class HyperConnected(Wiring):
    """Each piece reads one row of the streams through its norm, one piece after the other (DeepSeek-V4).

    Args:
        norm: makes the norm of a piece.
        streams: makes a piece's weights; those of the piece `attn` are `attn_streams`.
        pieces: as Wiring has them.
    """

    def __init__(
        self, norm: Callable[[], nn.Module], streams: Callable[[], StreamWeights], **pieces: nn.Module
    ) -> None:
        super().__init__(norm, scale=1.0, **pieces)
        for name in self.pieces:
            self.add_module(f"{name}_streams", streams())

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._mix_streams = backend.mix_streams

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            read, weights = getattr(self, f"{name}_streams")(x)
            x = self._mix_streams(x, self.branch(name, read, batch), weights)
        return x


class RepeatedEmbedding(nn.Module):
    """A token's vector, `count` times side by side: the streams before the first layer."""

    def __init__(self, tokens: Embedding, count: int) -> None:
        super().__init__()
        self.tokens, self.count = tokens, count

    def prepare(self, backend: Backend) -> None:
        self._side_by_side = backend.side_by_side

    def forward(self, batch: Batch) -> Tensor:
        once: Tensor = self.tokens(batch)
        x = once
        for _ in range(self.count - 1):
            x = self._side_by_side(x, once)
        return x


class HyperConnectedLM(CausalLM):
    """With one row of the streams for the last norm.

    Args:
        last_streams: makes that row.
        parts: CausalLM's arguments; the embedding gives all streams.
    """

    def __init__(self, last_streams: StreamWeights, **parts: Any) -> None:
        super().__init__(**parts)
        self.last_streams = last_streams
        self.stream_size = last_streams.count * last_streams.hidden_size

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        return super().finish(self.last_streams(x)[0], batch)
