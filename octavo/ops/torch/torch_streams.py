"""Several residual streams: see octavo.ops.streams."""

import torch
from torch import Tensor

from octavo.ops.streams import StreamSpec
from octavo.ops.torch.activations import sigmoid


def stream_weights(products: Tensor, spec: StreamSpec) -> tuple[Tensor, Tensor]:
    """See octavo.ops.streams. Sums are of few terms, one after the other, so that rows do not depend on each other."""
    count = spec.count
    read = sigmoid(products[:, :count] * spec.scale[0] + spec.bias[:count]) + spec.eps
    if products.shape[1] == count:
        return read, products.new_empty(len(products), 0)
    write = sigmoid(products[:, count : 2 * count] * spec.scale[1] + spec.bias[count : 2 * count]) * 2.0
    mix = (products[:, 2 * count :] * spec.scale[2] + spec.bias[2 * count :]).view(-1, count, count)
    mix = torch.exp(mix - mix.amax(-1, keepdim=True))
    mix = mix / _sum(mix, 2) + spec.eps
    mix = mix / (_sum(mix, 1) + spec.eps)
    for _ in range(spec.iterations - 1):
        mix = mix / (_sum(mix, 2) + spec.eps)
        mix = mix / (_sum(mix, 1) + spec.eps)
    return read, torch.cat([write.unsqueeze(2), mix.transpose(1, 2)], dim=2)


def _sum(x: Tensor, dim: int) -> Tensor:
    parts = x.unbind(dim)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.unsqueeze(dim)


def mix_streams(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """See octavo.ops.streams."""
    rows, count, _ = weights.shape
    old, new = x.float().view(rows, count, -1), y.float().unsqueeze(1)
    total = new * weights[:, :, :1]
    for j in range(count):
        total = total + old[:, j : j + 1] * weights[:, :, 1 + j : 2 + j]
    return total.flatten(1).to(x.dtype)
