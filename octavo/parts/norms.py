"""Norms. Their weights are few, and kept in float32."""

import torch
from torch import Tensor, nn

from octavo.ops import Backend, NormSpec


class Norm(nn.Module):
    """What can also be told to a backend as data, for norms of queries and keys."""

    def spec(self) -> NormSpec:
        raise NotImplementedError


class RMSNorm(Norm):
    """Root mean square norm. `offset` is added to the weight (1 in Gemma, whose weights are around 0)."""

    float32_parameters = True

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps
        self.offset = offset

    def prepare(self, backend: Backend) -> None:
        self._norm = backend.rms_norm
        if self.offset:
            self.weight.data = self.weight.data + self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x, self.weight, self.eps)

    def spec(self) -> NormSpec:
        return NormSpec("rms", self.weight, None, self.eps)


class LayerNorm(Norm):
    """Mean and variance norm, with or without weight and bias. `offset` is added to the weight (Nemotron's is 1)."""

    float32_parameters = True

    def __init__(self, size: int, eps: float, weight: bool = True, bias: bool = True, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False) if weight else None
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if bias else None
        self.eps = eps
        self.offset = offset

    def prepare(self, backend: Backend) -> None:
        self._norm = backend.layer_norm
        if self.offset and self.weight is not None:
            self.weight.data = self.weight.data + self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x, self.weight, self.bias, self.eps)

    def spec(self) -> NormSpec:
        return NormSpec("layer", self.weight, self.bias, self.eps)


class HeadNorm(Norm):
    """A layer norm of each head's queries or keys, with weights `[heads, head_dim]` (Command-R+), and such biases."""

    float32_parameters = True

    def __init__(self, num_heads: int, head_dim: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False) if bias else None
        self.eps = eps

    def spec(self) -> NormSpec:
        return NormSpec("layer", self.weight, self.bias, self.eps)
