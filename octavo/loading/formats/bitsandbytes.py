"""bitsandbytes (Dettmers et al. 2022, 2023): int8 by rows, and codes of nf4 or fp4 by blocks of the flat weight."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.formats.scaled import numbers_of, two_dimensions
from octavo.loading.formats.unpacking import nibbles

KINDS = ("nf4", "fp4")
STATE = "weight.quant_state.bitsandbytes__"
STATE_MAX = 4096
"""Bytes of what is said of a weight."""


class BitsAndBytesWeights(QuantizedWeights):
    """Where there is `SCB`, `weight` is int8, and times it over 127. Else `weight` is 4-bit codes, the first high.

    They are places in `weight.quant_map`; a block's largest value is in `weight.absmax`, or in 8 bits of which
    `weight.nested_*` tell. The weight's shape is in a JSON text.
    """

    name = "bitsandbytes"
    reads = "nf4 and fp4, with double quantization or not; int8"
    held = "codes of nf4 and fp4 with a float32 scale for each 64; codes of 8 bits"
    of_weight = ("SCB", "weight.absmax")
    beside = (
        *("weight_format", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
        *(STATE + kind for kind in KINDS),
    )

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        weight, name = self.needed(module, tensors, "weight"), f"{module}.weight"
        if "SCB" in tensors:
            rows, (outputs, inputs) = tensors["SCB"], two_dimensions(name, weight)
            self.fit(module, "SCB", rows, (outputs,))
            return (outputs, inputs), lambda: Codes(
                numbers_of(name, weight), rows.read().float().unsqueeze(1) / 127, inputs
            )
        state = self._state(module, tensors)
        shape, block = state["shape"], state["blocksize"]
        count, blocks = math.prod(shape), math.ceil(math.prod(shape) / block)
        self.fit(module, "weight", weight, (math.ceil(count / 2), 1), (1, math.ceil(count / 2)))
        self.fit(module, "weight.absmax", tensors["weight.absmax"], (blocks,))
        table = self.needed(module, tensors, "weight.quant_map")
        self.fit(module, "weight.quant_map", table, (16,))

        def make() -> Codes:
            packed = integers(name, weight, torch.uint8).reshape(1, -1)
            codes = nibbles(packed, high_first=True)[0, :count].view(shape)
            largest = self._largest(module, tensors, state)
            means = table.read().float()
            if shape[1] % block == 0:
                return Codes(codes, largest.view(shape[0], -1), block, table=means)
            # Blocks that go on in the next row: a scale for each value.
            return Codes(codes, largest.repeat_interleave(block)[:count].view(shape), 1, table=means)

        return shape, make

    def _largest(self, module: str, tensors: Tensors, state: Mapping[str, Any]) -> Tensor:
        """[blocks] float32"""
        largest = tensors["weight.absmax"].read()
        if largest.dtype != torch.uint8:
            return largest.float()
        names = ("weight.nested_absmax", "weight.nested_quant_map")
        nested, table = (self.needed(module, tensors, name).read().float() for name in names)
        size = state["nested_blocksize"]
        if len(table) != 256 or len(nested) != math.ceil(len(largest) / size):
            raise CheckpointError(f"{self.folder}: {shorten(module)}.weight.nested_absmax does not fit its weight.")
        offset: float = state["nested_offset"]
        return table[largest.int()] * nested.repeat_interleave(size)[: len(largest)] + offset

    def _state(self, module: str, tensors: Tensors) -> dict[str, Any]:
        """What is said of a weight: its shape, as a pair, and how many of it share a scale."""
        suffix = next((STATE + kind for kind in KINDS if STATE + kind in tensors), STATE + KINDS[0])
        source = self.needed(module, tensors, suffix)
        try:
            if math.prod(source.shape) > STATE_MAX:
                raise ValueError("it is too long")
            state = json.loads(bytes(source.read().to(torch.uint8).tolist()))
            outputs, inputs = state["shape"]
            found = {"shape": (outputs, inputs), "nested_offset": float(state.get("nested_offset", 0.0))}
            found |= {key: state.get(key, 256) for key in ("blocksize", "nested_blocksize")}
            if any(
                type(n) is not int or n < 1 for n in (outputs, inputs, found["blocksize"], found["nested_blocksize"])
            ):
                raise ValueError("its sizes are no counts")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.folder}: {shorten(f'{module}.{suffix}')} is damaged ({shorten(error, 100)}). Download it again."
            ) from error
        return found
