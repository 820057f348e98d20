"""Weights as files store them, row by row, in one of the kinds that the core multiplies with."""

from dataclasses import dataclass

import torch
from torch import Tensor

F32, F16, BF16 = 0, 1, 30
Q4_1 = 3
Q8_0 = 8

FLOATS = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
KINDS = {
    F32: "F32",
    F16: "F16",
    BF16: "BF16",
    2: "Q4_0",
    Q4_1: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    Q8_0: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
}
"""Kinds that are computed with as they are, by ggml's numbers where it has one."""


@dataclass(frozen=True)
class StoredRows:
    """Rows of a weight `[outputs, width]` as they are stored."""

    kind: int
    """One of KINDS."""
    width: int
    data: Tensor
    """[outputs, bytes of a row] uint8, or [outputs, width] of a float kind."""


def of_floats(weight: Tensor) -> StoredRows:
    """A weight `[outputs, width]` in a float dtype."""
    return StoredRows(FLOATS[weight.dtype], weight.shape[1], weight)
