"""Experts as gpt-oss is released: stacks of MXFP4 (Open Compute Project 2023), blocks and scales, all else in floats.

A block is 32 numbers of an input row: two of e2m1 a byte, the low half first, and one exponent for all of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names

BLOCK = 32
"""Numbers that share a scale."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a code mean; the fourth is the sign."""
SUFFIXES = ("_blocks", "_scales")


class MXFP4Weights(PlainWeights):
    """A folder in which `{name}_blocks` `[experts, out, in / 32, 16]` and `{name}_scales` make `{name}`.

    That is `[experts, in, out]`. They become bfloat16, which holds all of their values.
    """

    name = "mxfp4"

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        halves: dict[str, dict[str, TensorSource]] = {}
        for name, source in super().tensors(names):
            suffix = next((s for s in SUFFIXES if name.endswith(s)), None)
            if suffix is None:
                yield name, source
                continue
            whole = name.removesuffix(suffix)
            halves.setdefault(whole, {})[suffix] = source
            if len(halves[whole]) == len(SUFFIXES):
                yield whole, MXFP4Stack(whole, *(halves[whole][s] for s in SUFFIXES))
                del halves[whole]
        for whole, found in halves.items():
            lacking = next(s for s in SUFFIXES if s not in found)
            raise CheckpointError(f"{self.folder} lacks {shorten(whole + lacking)}. Download the whole model.")


class MXFP4Stack(TensorSource):
    """One weight of each expert. Raises CheckpointError where the shapes of blocks and scales do not fit."""

    def __init__(self, name: str, blocks: TensorSource, scales: TensorSource) -> None:
        if len(blocks.shape) != 4 or blocks.shape[-1] * 2 != BLOCK or blocks.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{shorten(name)}: blocks {list(blocks.shape)} and scales {list(scales.shape)} are not those of one "
                "weight in MXFP4. Is the download complete?"
            )
        experts, outputs, groups, _ = blocks.shape
        self.blocks, self.scales, self.shape = blocks, scales, (experts, groups * BLOCK, outputs)

    def read(self) -> Tensor:
        blocks, scales = self.blocks.read(), self.scales.read()
        out = torch.empty(self.shape, dtype=torch.bfloat16)
        for expert, block, scale in zip(out, blocks, scales, strict=True):
            expert.copy_(dequantized(block, scale).t())
        return out


def dequantized(blocks: Tensor, scales: Tensor) -> Tensor:
    """Codes `[rows, groups, 16]` and exponents `[rows, groups]`, uint8 both, as numbers `[rows, groups * 32]`."""
    values = torch.tensor([*E2M1, *(-v for v in E2M1)])
    numbers = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], -1).flatten(-2)
    return torch.ldexp(numbers, scales.int().unsqueeze(-1) - 127).flatten(-2)
