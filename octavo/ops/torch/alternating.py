"""Several residual streams in a row, and gates of which few stay: octavo.ops.alternating_streams."""

import torch
from torch import Tensor

from octavo.ops.torch.activations import ACTIVATIONS


class TorchAlternating:
    """The operations in PyTorch."""

    def predict_streams(self, x: Tensor, mix: Tensor) -> Tensor:
        streams = int(mix.shape[1] ** 0.5)
        each, factors = x.float().view(len(x), streams, -1), mix.view(len(x), streams, streams, 1)
        total = each
        for j in range(streams):  # in their order, so that sums do not depend on the other rows
            total = total + factors[:, :, j] * each[:, j : j + 1]
        return total.to(x.dtype).view(x.shape)

    def correct_streams(self, x: Tensor, y: Tensor, gains: Tensor, active: int) -> Tensor:
        each = x.float().view(*gains.shape, -1)
        change = (y.float() - each[:, active]).unsqueeze(1)
        return (each + change * (gains + 1.0).unsqueeze(-1)).to(x.dtype).view(x.shape)

    def add_to_streams(self, x: Tensor, y: Tensor) -> Tensor:
        size = y.shape[1]
        others = (x[:, size:].float().view(len(x), -1, size) + y.float().unsqueeze(1)).to(x.dtype)
        return torch.cat([x[:, :size], others.flatten(1)], dim=1)

    def match_magnitude(self, x: Tensor, like: Tensor, least: float) -> Tensor:
        given = x.float()
        target, own = (rows.square().mean(-1, keepdim=True) for rows in (like.float(), given))
        return (given * (target / own.clamp(min=least)).sqrt()).to(x.dtype)

    def row_cutoffs(self, x: Tensor, deviations: float) -> Tensor:
        values = x.float()
        mean = values.mean(-1, keepdim=True)
        return mean.squeeze(-1) + (values - mean).square().mean(-1).sqrt() * deviations

    def gated_above(self, gate_up: Tensor, cutoffs: Tensor, activation: str) -> Tensor:
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (ACTIVATIONS[activation]((gate - cutoffs.unsqueeze(-1)).clamp(min=0.0)) * up).to(gate_up.dtype)
