"""Operations on several residual streams that lie side by side in a row (AltUp; Baykal et al. 2023), and on gates of
which few stay. Each row is computed by itself, in float32, and rounded once."""

from typing import Protocol

from torch import Tensor


class AlternatingStreams(Protocol):
    """`x` is `[rows, streams * size]` of `streams` streams; results are in its dtype."""

    def predict_streams(self, x: Tensor, mix: Tensor) -> Tensor:
        """Each stream i plus the sum over j of `mix[:, i * streams + j]` times stream j.

        `mix` is `[rows, streams * streams]` in float32.
        """
        ...

    def correct_streams(self, x: Tensor, y: Tensor, gains: Tensor, active: int) -> Tensor:
        """Each stream i plus `1 + gains[:, i]` times what `y` differs by from the stream `active`.

        `y` is `[rows, size]` in the dtype of `x`, `gains` `[rows, streams]` in float32.
        """
        ...

    def add_to_streams(self, x: Tensor, y: Tensor) -> Tensor:
        """The first stream as it is, and each of the others plus `y` `[rows, size]`."""
        ...

    def match_magnitude(self, x: Tensor, like: Tensor, least: float) -> Tensor:
        """`x` `[rows, size]` times `sqrt(mean(like ** 2) / max(mean(x ** 2), least))`; `like` is as `x`."""
        ...

    def row_cutoffs(self, x: Tensor, deviations: float) -> Tensor:
        """`mean(x) + deviations * standard deviation(x)` of each row of `x` `[rows, size]`: `[rows]` float32."""
        ...

    def gated_above(self, gate_up: Tensor, cutoffs: Tensor, activation: str) -> Tensor:
        """`activation(max(gate - cutoff, 0)) * up` of `gate_up` `[rows, 2 * size]`, whose first half is the gate.

        `cutoffs` is `[rows]` in float32, `activation` a name in ACTIVATIONS.
        """
        ...
