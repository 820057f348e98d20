"""Several residual streams: what a piece reads of them, and what becomes of them (hyper-connections; Zhu et al. 2024).

Weights are made of the streams themselves, and those by which streams are mixed with each other are kept near doubly
stochastic, so that nothing grows over many layers (Xie et al. 2026).
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StreamSpec:
    """How products with the streams become weights."""

    count: int
    """Of streams."""
    scale: Tensor
    """[3] float32: factors of the weights to read with, to write with, and to mix with; [1] for the first alone."""
    bias: Tensor
    """[count * (2 + count)] float32, or [count]: added to the scaled products."""
    eps: float
    """Added to weights and to the sums that they are divided by."""
    iterations: int = 0
    """How often columns and rows of the mixing weights are divided by their sums (Sinkhorn & Knopp 1967)."""


class Streams(Protocol):
    """Operations on `count` streams that lie side by side in a row, those of a backend."""

    def stream_weights(self, products: Tensor, spec: StreamSpec) -> tuple[Tensor, Tensor]:
        """Weights to read streams with, `[rows, count]`, and to write with and mix by, `[rows, count, 1 + count]`.

        `products` is `[rows, count * (2 + count)]` float32, or `[rows, count]`, of which the second result is empty:
        those for reading, for writing, and a matrix of what each stream gives to each. The new stream k is its first
        weight times what a piece gives, and the sum over j of weight 1 + j times the old stream j.
        """
        ...

    def mix_streams(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """Streams `x` `[rows, count * size]`, after a piece has given `y` `[rows, size]`, by those weights.

        Summed in float32 in the order of terms, and rounded once.
        """
        ...
