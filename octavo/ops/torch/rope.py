"""Rotary position embedding (Su et al. 2021)."""

import torch
from torch import Tensor

from octavo.ops.specs import RotaryTable


def angles(table: RotaryTable, positions: Tensor, lengths: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
    """cos and sin, `[rows, pairs]` float32 each, of what each pair turns by at `positions + offset` `[rows]` int64.

    `lengths` `[rows]` int64 are those of the rows' whole sequences.
    """
    device = positions.device
    frequencies, scale = table.frequencies.to(device), torch.tensor(table.scales, device=device).unsqueeze(1)
    if table.long_rope_threshold is not None:
        row = (lengths > table.long_rope_threshold).long()
        frequencies, scale = frequencies[row], scale[row]
    turned = (positions + offset).float().unsqueeze(1) * frequencies
    return turned.cos() * scale, turned.sin() * scale


def position_factors(positions: Tensor, beta: float, period: float, offset: int) -> Tensor:
    """Factors of queries `[rows]` float32 that grow with the logarithm of their position (Llama 4).

    `1 + beta * log(1 + floor((position + offset) / period))` of `positions` `[rows]` int64.
    """
    periods = torch.floor((positions + offset).double() / period)
    return (torch.log1p(periods) * beta + 1.0).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the first `2 * pairs` values of each head of `x` `[tokens, heads, head_dim]`.

    `cos` and `sin` are `[tokens, pairs]` in float32. A pair is (i, i + pairs), as GPT-NeoX has it, or (2i, 2i + 1)
    where `interleaved`, as GPT-J has it. Returns float32, in which attention goes on.
    """
    pairs = cos.shape[-1]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    head = (x if 2 * pairs == x.shape[-1] else x[..., : 2 * pairs]).float()
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
        turned = torch.stack([(first * cos).sub_(second * sin), (second * cos).add_(first * sin)], -1).flatten(-2)
    else:
        first, second = head[..., :pairs], head[..., pairs:]
        turned = torch.cat([(first * cos).sub_(second * sin), (second * cos).add_(first * sin)], -1)
    return turned if 2 * pairs == x.shape[-1] else torch.cat([turned, x[..., 2 * pairs :].float()], -1)
