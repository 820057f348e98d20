"""A convolution over a prompt's rows beside a layer (DeBERTa-v2's first: He et al. 2021)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import Linear
from octavo.parts.mlp import check_activation
from octavo.parts.split import Split, split_parts
from octavo.parts.wiring import PostNorm


class ConvolvedPostNorm(PostNorm):
    """PostNorm whose result is added to a convolution over the rows that it reads, within each prompt, and normed.

    Args:
        norm: makes the norms of the pieces, and `conv_norm`.
        kernel: taps, an odd number.
        conv: the convolution, as a product with the rows around each, side by side.
        activation: of the convolution's result.
        pieces: see Wiring.
    """

    def __init__(
        self, norm: Callable[[], nn.Module], kernel: int, conv: Linear, activation: str, **pieces: Any
    ) -> None:
        super().__init__(norm, **pieces)
        check_activation(activation)
        self.kernel, self.conv, self.activation = kernel, conv, activation
        self.add_norms("conv", norm)

    def split(self, split: Split) -> None:
        """See octavo.parts.split: the pieces say how they are; the convolution's results are gathered."""
        for name in self.pieces:
            split_parts(getattr(self, name), split)
        self.conv.split_outputs(split.share(self.conv.outputs), split.widths(self.conv.outputs))

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._activate = backend.activate

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        around = torch.cat([shifted(x, by, batch) for by in range(-(self.kernel // 2), self.kernel // 2 + 1)], 1)
        convolved = self._activate(self.conv(around, batch), self.activation)
        return self.norm("conv", self._add(super().forward(x, batch), convolved), batch)


def shifted(x: Tensor, by: int, batch: Batch) -> Tensor:
    """For each row of `x` the row `by` places after it in its run, zeros where the run has none."""
    y = torch.zeros_like(x)
    for first, count in batch.runs:
        low, high = first + max(0, -by), first + count - max(0, by)
        if low < high:
            y[low:high] = x[low + by : high + by]
    return y
