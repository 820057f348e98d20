"""Weights in every kind that is computed with as it is stored, with random bits."""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from octavo.loading.formats.codes import BNB_FP4, NF4
from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind

FLOATS = {WeightKind.F32: torch.float32, WeightKind.F16: torch.float16, WeightKind.BF16: torch.bfloat16}
QUANTIZED = [kind for kind in WeightKind if kind not in FLOATS]
WIDENED = (WeightKind.E4M3, WeightKind.E5M2, WeightKind.NF4, WeightKind.FP4)
"""Kinds of few bits that are multiplied with floats: rows are not rounded."""
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82)}
HALVES |= {"Q3_K": (108,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (), "GGUF_NVFP4": (), "IQ1_M": ()}
"""Where a block has its float16 numbers; at its beginning if not said."""
GROUPS = {"U4_32": (32, 2), "U4_64": (64, 2), "U4_128": (128, 2)}
GROUPS |= {"U8_32": (32, 1), "U8_128": (128, 1), "NVFP4": (64, 1), "E4M3": (128, 1), "NF4": (64, 1)}
GROUPS |= {"U8_MIN_32": (32, 2), "U8_MIN_128": (128, 2), "E5M2": (128, 1), "FP4": (64, 1)}
"""Of kinds that GGUF files lack: columns of a unit, and float32 numbers before its codes."""


def width_for(kind: WeightKind, width: int) -> int:
    """The next width that a kind has rows of."""
    if kind in FLOATS:
        return width
    block = GROUPS[kind.name][0] if kind.name in GROUPS else gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)][0]
    return -(-width // block) * block


def random_rows(kind: WeightKind, outputs: int, width: int, generator: torch.Generator) -> tuple[StoredRows, Tensor]:
    """Rows `[outputs, width]` with random codes, and the numbers that they stand for in float64."""
    if kind in FLOATS:
        data = torch.randn(outputs, width, generator=generator).to(FLOATS[kind])
        return StoredRows(kind, width, data), data.double()
    if kind.name in GROUPS:
        return random_groups(kind, outputs, width, generator)
    stored = random_blocks(kind, outputs, width, generator)
    meant = dequantize(stored.data.numpy(), gguf.GGMLQuantizationType(kind)).astype(np.float64)
    return stored, torch.from_numpy(meant)


def random_blocks(kind: WeightKind, outputs: int, width: int, generator: torch.Generator) -> StoredRows:
    """Rows of a quantized kind of GGUF's, whose scales are of one size."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    blocks = torch.randint(0, 256, (outputs, width // block, size), dtype=torch.uint8, generator=generator)
    if kind == WeightKind.MXFP4:
        blocks[:, :, 0] = blocks[:, :, 0] % 8 + 118
    elif kind == WeightKind.GGUF_NVFP4:
        blocks[:, :, :4] &= 0x9F
    elif kind == WeightKind.IQ1_M:
        blocks[:, :, 55] = blocks[:, :, 55] & 0x8F | 0x20  # the exponent of a float16 that lies in four places
    for at in HALVES.get(kind.name, (0,)):
        halves = (torch.randn(outputs, width // block, 1, generator=generator) / 64).half()
        blocks[:, :, at : at + 2] = halves.view(torch.uint8)
    return StoredRows(kind, width, blocks.view(outputs, -1))


def random_groups(kind: WeightKind, outputs: int, width: int, generator: torch.Generator) -> tuple[StoredRows, Tensor]:
    """Rows of a kind whose units are float32 numbers, and then codes."""
    size, count = GROUPS[kind.name]
    units, is_bytes = (outputs, width // size), kind.name.startswith(("U8", "E4M3", "E5M2"))
    numbers = torch.randn(*units, count, generator=generator) / 64
    codes = torch.randint(0, 256 if is_bytes else 16, (*units, size), dtype=torch.uint8, generator=generator)
    packed = codes if is_bytes else codes[..., 0::2] | codes[..., 1::2] << 4
    parts, values = [numbers.view(torch.uint8)], codes.double()
    scales = numbers[..., :1].double()
    if kind == WeightKind.NVFP4:
        halves = torch.rand(*units, 4, generator=generator).half()
        parts.append(halves.view(torch.uint8))
        e2m1 = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12], dtype=torch.float64)
        values = torch.cat([e2m1, -e2m1])[codes.int()]
        scales = scales * halves.double().repeat_interleave(16, -1)
    elif kind in (WeightKind.NF4, WeightKind.FP4):
        values = torch.tensor(NF4 if kind == WeightKind.NF4 else BNB_FP4, dtype=torch.float64)[codes.int()]
    elif kind == WeightKind.E5M2:
        codes[codes & 0x7C == 0x7C] = 0  # what is not finite
        values = codes.view(torch.float8_e5m2).double()
    elif kind == WeightKind.E4M3:
        codes[codes & 127 == 127] = 0  # a NaN
        values = codes.view(torch.float8_e4m3fn).double()
    elif is_bytes and count == 1:
        values = values - 128
    meant = values * scales + (numbers[..., 1:].double() if count == 2 else 0.0)
    data = torch.cat([*parts, packed], dim=-1).view(outputs, -1)
    return StoredRows(kind, width, data), meant.view(outputs, width)
