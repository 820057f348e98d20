"""Weights that NVIDIA's Model Optimizer writes: 8-bit floats by tensor, and 4-bit ones with scales of 16 inputs."""

from collections.abc import Callable
from functools import partial

from octavo.loading.formats.codes import Codes
from octavo.loading.formats.fp8 import FP8Weights
from octavo.loading.formats.quantized import Tensors
from octavo.loading.formats.scaled import fp4_pairs, single

GROUP = 16


class ModelOptWeights(FP8Weights):
    """As FP8; where there is a `weight_scale_2`, `weight` holds pairs of e2m1, and both scales are multiplied with."""

    name = "modelopt"
    reads = "FP8 by tensor, NVFP4"
    held = "8-bit floats, or e2m1 with a float16 scale for each 16 (NVFP4)"
    beside = (*FP8Weights.beside, "weight_scale_2")
    refused = ("pre_quant_scale",)

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        if "weight_scale_2" not in tensors:
            return super().codes(module, tensors)
        weight, scales, whole = (self.needed(module, tensors, s) for s in ("weight", "weight_scale", "weight_scale_2"))
        return fp4_pairs(f"{module}.weight", weight, scales, GROUP, partial(single, f"{module}.weight_scale_2", whole))
