"""Activations, made only of operations whose vector and scalar code agree to the last bit.

PyTorch's own silu, sigmoid, gelu(tanh) and softplus give other last bits at the ragged end of a buffer than inside
it, so that a value would depend on where in the batch it stands. exp, tanh, erf and the arithmetic below do not.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.ops.specs import Gate


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return torch.exp(-x).add_(1.0).reciprocal_()


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`."""
    return x / torch.exp(-x).add_(1.0)


def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)`, by the error function (Hendrycks & Gimpel 2016)."""
    return torch.erf(x * math.sqrt(0.5)).add_(1.0).mul_(x).mul_(0.5)


def gelu_tanh(x: Tensor) -> Tensor:
    """gelu in its tanh approximation."""
    inner = x.square().mul_(0.044715).add_(1.0).mul_(x).mul_(math.sqrt(2.0 / math.pi))
    return inner.tanh_().add_(1.0).mul_(x).mul_(0.5)


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`."""
    return x / torch.exp(x * -1.702).add_(1.0)


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""
    return torch.relu(x)


def relu_squared(x: Tensor) -> Tensor:
    """`max(x, 0) ** 2`."""
    return torch.relu(x).square()


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, and `x` itself where the difference is below float32's precision."""
    return torch.where(x > 20.0, x, torch.log1p(torch.exp(x.clamp(max=20.0))))


def xielu(x: Tensor, shape: Tensor) -> Tensor:
    """xIELU (Huang & Schlag 2024): a square above zero, an exponential below, the same line beside both.

    `alpha_p * x ** 2 + beta * x` where x is positive, else `alpha_n * (exp(min(x, eps)) - 1 - x) + beta * x`; `shape`
    is `[4]` float32: alpha_p, alpha_n, beta, eps.
    """
    alpha_p, alpha_n, beta, eps = shape
    below = torch.exp(torch.minimum(x, eps)).sub_(1.0).sub_(x).mul_(alpha_n)
    return torch.where(x > 0, x.square().mul_(alpha_p), below).add_(x * beta)


Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "silu": silu,
    "swish": silu,
    "sigmoid": sigmoid,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu_squared,
    "softplus": softplus,
    "tanh": torch.tanh,
}
"""Activations by the names that published configs use."""


def gated(gate_up: Tensor, gate: Gate) -> Tensor:
    """The two halves of `gate_up` `[rows, 2 * size]` as one, `[rows, size]`, computed in float32."""
    first, up = gate_up.float().chunk(2, dim=-1)
    if gate.threshold is not None:
        first = torch.where(first <= gate.threshold, 0.0, first)
    if gate.limit is not None:
        first, up = first.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    if gate.activation is not None:
        first = ACTIVATIONS[gate.activation](first)
    if gate.up_offset:
        up = up + gate.up_offset
    return (first * up).to(gate_up.dtype)
