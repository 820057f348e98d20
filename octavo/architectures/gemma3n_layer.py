"""The layer of Gemma 3n: it computes with one of several streams, beside what a product of low rank adds."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts import AltUp, Batch, Linear, PerLayerInput, RMSNorm, SandwichNorm
from octavo.parts.norms import norm_rows
from octavo.parts.split import Split


class Laurel(nn.Module):
    """`x + norm(right(left(x)))`, a residual that is learned (LAuReL; Menghani et al. 2024)."""

    def __init__(self, norm: RMSNorm, rank: int) -> None:
        super().__init__()
        self.left, self.right, self.norm = Linear(norm.size, rank), Linear(rank, norm.size), norm

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = split.share(self.left.outputs)
        self.left.split_outputs(own)
        self.right.split_inputs(split, own)

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self._add(x, norm_rows(self.norm, self.right(self.left(x, batch), batch), batch))


class Gemma3nLayer(SandwichNorm):
    """Attention with Laurel beside it and the feed-forward, on the active stream; the others follow from it.

    Args:
        norm: makes norms of the stream.
        attn, mlp: the pieces.
        altup: mixes streams.
        laurel: of the normed active stream.
        per_layer: of the corrected active stream, added to all streams but the first.
    """

    def __init__(
        self,
        norm: Callable[[], RMSNorm],
        *,
        attn: nn.Module,
        mlp: nn.Module,
        altup: AltUp,
        laurel: Laurel,
        per_layer: PerLayerInput,
    ) -> None:
        super().__init__(norm, attn=attn, mlp=mlp)
        self.altup, self.laurel, self.per_layer, self.per_layer_norm = altup, laurel, per_layer, norm()

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._scale, self._add_to_streams = backend.scale, backend.add_to_streams

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        predicted = self.altup.predicted(x, batch)
        active = self.altup.active_of(predicted)
        normed = self.norm("attn", active, batch)
        attended = self._add(active, self.norm("attn_post", self.piece("attn", normed, batch), batch))
        y = self._scale(self._add(attended, self.laurel(normed, batch)), math.sqrt(0.5))
        y = self._add(y, self.branch("mlp", y, batch))
        streams = self.altup.corrected(predicted, y, batch)
        own = self.per_layer(self.altup.scaled(streams), batch)
        return self._add_to_streams(streams, norm_rows(self.per_layer_norm, own, batch))
