"""HQQ (Badri and Shaji 2023): codes of groups of the flat weight, whose zeros are floats."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.errors import CheckpointError, UnsupportedModelError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.tensor_source import TensorSource

BITS = (1, 2, 3, 4, 8)
IN_A_WORD = 10
"""Codes of 3 bits in an int32."""


class HQQWeights(QuantizedWeights):
    """`W_q`: the codes of groups, group by group (axis 1) or side by side (axis 0).

    A byte's highest bits are of the first part of all rows, the next ones of the second. Values are
    `(code - zero) * scale`, reshaped.
    """

    name = "hqq"
    reads = "1, 2, 3, 4 and 8 bits, both axes"
    held = "codes of 4 or 8 bits with a float32 scale and low; float16 for axis 0, whose scales no columns share"
    of_weight = ("W_q",)
    beside = (
        *("scale", "zero", "nbits", "axis", "group_size", "shape", "packing", "unpack_view_dtype", "view_as_float"),
        *("channel_wise", "optimize", "round_zero", "compute_dtype", "offload_meta", "encoded_state_dict"),
        *("stores_quant_config", "quant_scale", "quant_zero"),
    )

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        packed, scales, zeros = (self.needed(module, tensors, s) for s in ("W_q", "scale", "zero"))
        bits, axis = self._number(module, tensors, "nbits", BITS), self._number(module, tensors, "axis", (0, 1))
        for suffix in ("quant_scale", "quant_zero", "view_as_float"):
            if suffix in tensors and any(tensors[suffix].read().flatten().tolist()):
                raise UnsupportedModelError(
                    f"{self.folder}: {shorten(f'{module}.{suffix}')}: scales that are quantized themselves, and codes "
                    "that are stored as floats, are not supported with HQQ. Take a checkpoint without."
                )
        shape = self.needed(module, tensors, "shape")
        self.fit(module, "shape", shape, (2,))
        outputs, inputs = (int(n) for n in shape.read().tolist())
        group = self._number(module, tensors, "group_size", range(1, max(1, outputs * inputs) + 1), inputs)
        groups = outputs * inputs // group
        across = (groups, group) if axis == 1 else (group, groups)
        for suffix, source in (("scale", scales), ("zero", zeros)):
            self.fit(module, suffix, source, (groups, 1) if axis == 1 else (1, groups))
        in_a_word = IN_A_WORD if bits == 3 else 8 // bits
        self.fit(module, "W_q", packed, (math.ceil(across[0] / in_a_word), across[1]))

        def make() -> Codes:
            words = integers(f"{module}.W_q", packed, torch.int32 if bits == 3 else torch.uint8)
            codes = rows_of(words, bits, across[0])
            factors, means = scales.read().float(), zeros.read().float()
            if axis == 1 and inputs % group == 0:
                by_row = (outputs, inputs // group)
                return Codes(codes.view(outputs, inputs), factors.view(by_row), group, zeros=means.view(by_row))
            each = [values.expand(across).reshape(outputs, inputs) for values in (factors, means)]
            return Codes(codes.view(outputs, inputs), each[0], 1, zeros=each[1])

        return (outputs, inputs), make

    def _number(
        self, module: str, tensors: Tensors, suffix: str, choices: tuple[int, ...] | range, default: int | None = None
    ) -> int:
        """A number that is stored as a tensor. Raises CheckpointError for one that is none of `choices`."""
        source: TensorSource | None = tensors.get(suffix)
        if source is None and default is not None:
            return default
        source = self.needed(module, tensors, suffix)
        value = int(source.read().flatten()[0]) if math.prod(source.shape) == 1 else -1
        if value not in choices:
            raise CheckpointError(
                f"{self.folder}: {shorten(f'{module}.{suffix}')} is {value}, which HQQ does not have."
            )
        return value


def rows_of(packed: Tensor, bits: int, rows: int) -> Tensor:
    """[rows, n] codes of `[rows / codes in a word, n]` words: the highest bits hold the first rows."""
    if bits == 3:
        shifts = [27 - 3 * i for i in range(IN_A_WORD)]
    else:
        shifts = list(range(8 - bits, -1, -bits))
    parts = [(packed >> at & ((1 << bits) - 1)).to(torch.uint8) for at in shifts]
    return torch.cat(parts)[:rows].contiguous()
