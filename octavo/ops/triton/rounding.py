"""Rounding weights of floats to kinds of fewer bits as they load, on the device, as the compiled core does."""

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind

BLOCK = 32
ROUNDED_AT_ONCE = 1 << 22
"""Weights, whose temporaries are on the device."""


def quantize(weight: Tensor, kind: WeightKind, device: torch.device) -> StoredRows:
    """A weight `[outputs, width]` rounded to the nearest values of a `kind`: Q8_0 or Q4_1. The rows are on `device`."""
    rounding = {WeightKind.Q8_0: _q8_0, WeightKind.Q4_1: _q4_1}[kind]
    width = weight.shape[1]
    step = max(1, ROUNDED_AT_ONCE // max(1, width))
    parts = []
    for rows in weight.split(step):
        blocks = functional.pad(rows.to(device).float(), (0, -width % BLOCK)).view(len(rows), -1, BLOCK)
        parts.append(rounding(blocks).flatten(1))
    return StoredRows(kind, width, torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.uint8, device=device))


def _q8_0(blocks: Tensor) -> Tensor:
    """A float16 scale, and codes with a sign."""
    peak = blocks.abs().amax(-1, keepdim=True)
    scale = (peak / 127.0).half()
    step = scale.float()
    inverse = torch.where(step > 0, 1.0 / step, 0.0)
    codes = torch.round(blocks * inverse).clamp_(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], dim=-1)


def _q4_1(blocks: Tensor) -> Tensor:
    """16 steps from a block's least value to its largest: a float16 step and low, and codes."""
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    step, base = ((high - low) / 15.0).half(), low.half()
    wide = step.float()
    inverse = torch.where(wide > 0, 1.0 / wide, 0.0)
    codes = torch.round((blocks - base.float()) * inverse).clamp_(0, 15).to(torch.uint8)
    pairs = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    return torch.cat([step.view(torch.uint8), base.view(torch.uint8), pairs], dim=-1)
