"""Rotary position embedding (Su et al. 2021)."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the first `2 * pairs` values of each head of `x` `[tokens, heads, head_dim]`.

    `cos` and `sin` are `[tokens, pairs]` in float32. A pair is (i, i + pairs), as GPT-NeoX has it, or (2i, 2i + 1)
    where `interleaved`, as GPT-J has it. Computed in float32, rounded once to the dtype of `x`.
    """
    pairs = cos.shape[-1]
    out = torch.empty_like(x)
    head = x[..., : 2 * pairs].float()
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
        low, high = out[..., 0 : 2 * pairs : 2], out[..., 1 : 2 * pairs : 2]
    else:
        first, second = head[..., :pairs], head[..., pairs:]
        low, high = out[..., :pairs], out[..., pairs : 2 * pairs]
    low.copy_((first * cos).sub_(second * sin))
    high.copy_((second * cos).add_(first * sin))
    if 2 * pairs < x.shape[-1]:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out
