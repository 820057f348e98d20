"""Norms over the last dimension, computed in float32 and rounded once to the input's dtype."""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight`, `weight` `[width]` in float32 (Zhang & Sennrich 2019)."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True).add_(eps))
    return (x32 * scale).mul_(weight).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, parameters `[width]` in float32 (Ba et al. 2016)."""
    return functional.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)
