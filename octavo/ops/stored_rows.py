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
    order: Tensor | None = None
    """[width] which column of the weight each of these is; None where they are in order."""

    def lies_like(self, other: "StoredRows") -> bool:
        """Whether rows of both can be one packed weight's."""
        if self.kind != other.kind or self.order is None or other.order is None:
            return self.kind == other.kind and self.order is other.order
        return bool(torch.equal(self.order, other.order))


@dataclass(frozen=True)
class PackedRows:
    """Rows of a weight `[outputs, width]` as a backend has laid them out for computing."""

    kind: WeightKind
    outputs: int
    width: int
    data: Tensor
    """[bytes] uint8"""
    fine: bool = False
    """As of `stored_linear`, for the whole weight."""
    order: Tensor | None = None
    """[width] int32, as of StoredRows."""
    on_disk: bool = False
    """`data` is a file's, mapped, which need not be in memory."""


def of_floats(weight: Tensor) -> StoredRows:
    """A weight `[outputs, width]` in a float dtype."""
    return StoredRows(FLOATS[weight.dtype], weight.shape[1], weight)
