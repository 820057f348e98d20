"""Weights in every kind that is computed with as it is stored, with random bits."""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind

FLOATS = {WeightKind.F32: torch.float32, WeightKind.F16: torch.float16, WeightKind.BF16: torch.bfloat16}
QUANTIZED = [kind for kind in WeightKind if kind not in FLOATS]
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block has its float16 numbers; at its beginning if not said."""


def width_for(kind: WeightKind, width: int) -> int:
    """The next width that a kind has rows of."""
    if kind in FLOATS:
        return width
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)][0]
    return -(-width // block) * block


def random_rows(kind: WeightKind, outputs: int, width: int, generator: torch.Generator) -> tuple[StoredRows, Tensor]:
    """Rows `[outputs, width]` with random codes, and the numbers that they stand for in float64."""
    if kind in FLOATS:
        data = torch.randn(outputs, width, generator=generator).to(FLOATS[kind])
        return StoredRows(kind, width, data), data.double()
    of = gguf.GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[of]
    blocks = torch.randint(0, 256, (outputs, width // block, size), dtype=torch.uint8, generator=generator)
    for at in HALVES.get(kind.name, (0,)):
        halves = (torch.randn(outputs, width // block, 1, generator=generator) / 64).half()
        blocks[:, :, at : at + 2] = halves.view(torch.uint8)
    data = blocks.view(outputs, -1)
    return StoredRows(kind, width, data), torch.from_numpy(dequantize(data.numpy(), of).astype(np.float64))
