"""AWQ (Lin et al. 2024), as AutoAWQ writes it: 4-bit codes with a scale and a zero for each group of inputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.loading.formats.codes import Codes
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.formats.unpacking import unpacked

BITS, A_WORD = 4, 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The field of an int32 in which each of eight outputs is, where kernels of matrices (gemm) are to read them."""


class AWQWeights(QuantizedWeights):
    """`qweight` `[inputs, outputs / 8]`, `qzeros` `[groups, outputs / 8]`, `scales` `[groups, outputs]`.

    In the layout for vectors (gemv) codes follow each other along the inputs: `qweight` `[outputs, inputs / 8]`, and
    `qzeros` and `scales` have an output's groups in a row, with room for more.
    """

    name = "awq"
    reads = "4 bits, gemm and gemv layouts, groups of any size"
    held = "4-bit codes with a float32 scale and low for each 32, 64 or 128"
    of_weight = ("qweight", "qzeros", "scales")
    inputs_first = True

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        weight, zeros, scales = (self.needed(module, tensors, suffix) for suffix in self.of_weight)
        self.integer("bits", self.settings.get("w_bit", BITS), (BITS,))
        by_rows = str(self.settings.get("version", "gemm")).lower() in ("gemv", "gemv_fast")
        if by_rows:
            outputs, inputs = weight.shape[0], weight.shape[1] * A_WORD
        else:
            inputs, outputs = weight.shape[0], weight.shape[1] * A_WORD
        group = self.settings.get("group_size", self.settings.get("q_group_size", 128))
        group = inputs if group in (-1, None) else group
        group = self.integer("group_size", group, range(1, inputs + 1), {})
        groups = -(-inputs // group)
        name = f"{module}.qweight"

        def by_outputs() -> Codes:
            codes = ordered(integers(name, weight, torch.int32)).t()
            means = ordered(integers(f"{module}.qzeros", zeros, torch.int32)).t()
            return Codes(codes, scales.read().float().t(), group, zeros=means)

        def by_inputs() -> Codes:
            codes = unpacked(integers(name, weight, torch.int32), BITS, inputs)
            means = unpacked(integers(f"{module}.qzeros", zeros, torch.int32), BITS, groups)
            return Codes(codes, scales.read().float()[:, :groups], group, zeros=means)

        if by_rows:
            room = zeros.shape[-1]
            self.fit(module, "qzeros", zeros, (outputs, max(room, -(-groups // A_WORD))))
            self.fit(module, "scales", scales, (outputs, room * A_WORD), (outputs, groups))
            return (outputs, inputs), by_inputs
        self.fit(module, "qzeros", zeros, (groups, outputs // A_WORD))
        self.fit(module, "scales", scales, (groups, outputs))
        return (outputs, inputs), by_outputs


def ordered(words: Tensor) -> Tensor:
    """[rows, n] int32 to [rows, 8 n] codes, in the order of outputs."""
    fields = unpacked(words, BITS, words.shape[1] * A_WORD).view(len(words), -1, A_WORD)
    return fields[:, :, torch.tensor(ORDER)].flatten(1)
