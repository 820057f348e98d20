"""Weights as files store them, row by row, in one of the kinds that the core multiplies with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.weight_kinds import WeightKind

FLOATS = {torch.float32: WeightKind.F32, torch.float16: WeightKind.F16, torch.bfloat16: WeightKind.BF16}


@dataclass(frozen=True)
class StoredRows:
    """Rows of a weight `[outputs, width]` as they are stored."""

    kind: WeightKind
    width: int
    data: Tensor
    """[outputs, bytes of a row] uint8, or [outputs, width] of a float kind."""


def of_floats(weight: Tensor) -> StoredRows:
    """A weight `[outputs, width]` in a float dtype."""
    return StoredRows(FLOATS[weight.dtype], weight.shape[1], weight)
