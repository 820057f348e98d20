"""Experts as gpt-oss is released: stacks of MXFP4 (Open Compute Project 2023), blocks and scales, all else in floats.

A block is 32 numbers of an input row: two of e2m1 a byte, the low half first, and one exponent for all of them.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.formats.codes import FP4, Codes
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.formats.quantized_tensor import QuantizedTensor
from octavo.loading.formats.unpacking import nibbles
from octavo.loading.tensor_source import ExpertStack, TensorSource
from octavo.parts import Names
from octavo.parts.weight_slots import Shard

BLOCK = 32
"""Numbers that share a scale."""
SUFFIXES = ("_blocks", "_scales")


class MXFP4Weights(PlainWeights):
    """A folder in which `{name}_blocks` `[experts, out, in / 32, 16]` and `{name}_scales` make `{name}`.

    That is `[experts, in, out]`.
    """

    name = "mxfp4"
    as_stored = True

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


class MXFP4Stack(ExpertStack):
    """One weight of each expert. Raises CheckpointError where the shapes of blocks and scales do not fit."""

    def __init__(self, name: str, blocks: TensorSource, scales: TensorSource) -> None:
        if len(blocks.shape) != 4 or blocks.shape[-1] * 2 != BLOCK or blocks.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{shorten(name)}: blocks {list(blocks.shape)} and scales {list(scales.shape)} are not those of one "
                "weight in MXFP4. Is the download complete?"
            )
        experts, outputs, groups, _ = blocks.shape
        self.name, self.blocks, self.scales = name, blocks, scales
        self.shape = (experts, groups * BLOCK, outputs)

    def read(self) -> Tensor:
        return torch.stack([self.expert(e).read().t() for e in range(self.shape[0])])

    def expert(self, number: int) -> TensorSource:
        _, inputs, outputs = self.shape
        return QuantizedTensor(f"{self.name}[{number}]", (outputs, inputs), partial(self._codes, number))

    def _codes(self, number: int) -> Codes:
        only = Shard(rows=((number, number + 1),))
        blocks, exponents = (source.part(only).read()[0] for source in (self.blocks, self.scales))
        if blocks.dtype != torch.uint8 or exponents.dtype != torch.uint8:
            raise CheckpointError(f"{shorten(self.name)}: its blocks and scales are not bytes. Download them again.")
        scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - 127)
        return Codes(nibbles(blocks.flatten(1)), scales, BLOCK, table=torch.tensor(FP4))
