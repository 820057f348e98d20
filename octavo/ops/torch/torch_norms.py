"""Norms over the last dimension, computed in float32 and rounded once to the input's dtype."""

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.specs import NormSpec
from octavo.ops.torch.activations import ACTIVATIONS


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight`, `weight` `[width]` in float32 or None (Zhang & Sennrich 2019)."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True).add_(eps))
    normed = x32 * scale
    return (normed if weight is None else normed.mul_(weight)).to(x.dtype)


def rms_norm_gated(x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
    """`rms_norm` of each head times `activation(gate)`, in float32 (Yang et al. 2024).

    Args:
        x, gate: [rows, heads * size]
        weight: [size] float32, of every head.
        eps: of the norms.
        activation: a name in ACTIVATIONS.

    Returns: [rows, heads * size] in the dtype of `x`.
    """
    heads = x.float().view(len(x), -1, len(weight))
    return (rms_norm(heads, weight, eps).flatten(-2) * ACTIVATIONS[activation](gate.float())).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, parameters `[width]` in float32 (Ba et al. 2016)."""
    return functional.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def apply_norm(norm: NormSpec, x: Tensor) -> Tensor:
    """`x` `[..., size]`, or `[rows, heads, size]` where each head has a weight of its own."""
    if norm.kind == "rms":
        return rms_norm(x, norm.weight, norm.eps)
    if norm.weight is None or norm.weight.dim() == 1:
        return layer_norm(x, norm.weight, norm.bias, norm.eps)
    normed = layer_norm(x.float(), None, None, norm.eps) * norm.weight
    return (normed if norm.bias is None else normed + norm.bias).to(x.dtype)
