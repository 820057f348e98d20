"""Weights of 8-bit floats: as DeepSeek (blocks), AutoFP8 and Qwen (tensors), and FBGEMM (rows) write them."""

from collections.abc import Callable
from typing import ClassVar

from octavo.errors import CheckpointError
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.quantized import QuantizedWeights, Tensors
from octavo.loading.formats.scaled import scaled, two_dimensions


class FP8Weights(QuantizedWeights):
    """`weight` in float8, times `weight_scale` (of the tensor, or of each row) or `weight_scale_inv` (of each block).

    The second is multiplied with as well, whatever it is called. Scales of activations are left out: they are rounded
    more finely here than by a scale for each tensor.
    """

    name = "fp8"
    reads = "e4m3 with a scale for the tensor, each row, or blocks"
    held = "8-bit floats with a float32 scale for each 128"
    of_weight = ("weight_scale", "weight_scale_inv")
    beside: ClassVar[tuple[str, ...]] = (
        *("input_scale", "activation_scale", "input_scale_ub"),
        *("k_scale", "v_scale", "q_scale", "prob_output_scale"),
    )

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        weight, name = self.needed(module, tensors, "weight"), f"{module}.weight"
        outputs, inputs = two_dimensions(name, weight)
        scales = tensors.get("weight_scale_inv", tensors.get("weight_scale"))
        assert scales is not None
        if scales.shape in ((), (1,), (1, 1)):
            block = (outputs, inputs)
        elif (given := self.settings.get("weight_block_size")) is not None:
            block = self.block(given)
        else:
            block = (1, inputs)
        return (outputs, inputs), scaled(name, weight, scales, block)

    def block(self, given: object) -> tuple[int, int]:
        """Outputs and inputs of a block. Raises CheckpointError for what is no pair of counts."""
        if not isinstance(given, list) or len(given) != 2 or any(type(n) is not int or n < 1 for n in given):
            raise CheckpointError(
                f"{self.folder / 'config.json'}: weight_block_size must be two counts, such as [128, 128]."
            )
        return given[0], given[1]
