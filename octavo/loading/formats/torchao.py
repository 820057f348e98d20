"""torchao: tensors of several, of which the safetensors file's header tells the kind."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from octavo.errors import CheckpointError, UnsupportedModelError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.plain import folder_metadata
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.formats.scaled import scaled, two_dimensions
from octavo.loading.formats.unpacking import nibbles
from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names

KINDS = ("Int4Tensor", "Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor", "AffineQuantizedTensor")


class TorchAOWeights(QuantizedWeights):
    """`_weight_qdata`, `_weight_scale` and `_weight_zero_point` beside a module, as torchao flattens its tensors.

    Int8 and float8 are `(number - zero) * scale`; of int4 two inputs are a byte, the first low, with a sign, and the
    zero is added after.
    """

    name = "torchao"
    reads = "int4, int8 and float8 in safetensors files"
    held = "codes of 4 or 8 bits with float32 scales, 8-bit floats"
    of_weight = ("_weight_qdata",)
    beside = ("_weight_scale", "_weight_zero_point", "_weight_act_quant_scale")
    refused = ("_weight_act_pre_scale",)

    def __init__(self, folder: Path, load_format: str, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, load_format, settings)
        self.about: dict[str, Any] = {}

    def weights(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        self.about = folder_metadata(self.folder)
        return super().weights(names)

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        numbers, scales = (self.needed(module, tensors, s) for s in ("_weight_qdata", "_weight_scale"))
        kind, (high, wide) = self._kind(module)
        name = f"{module}._weight_qdata"
        if kind == "Int4Tensor":
            return self._int4(module, tensors, wide)
        outputs, inputs = two_dimensions(name, numbers)
        zeros = tensors.get("_weight_zero_point")
        if zeros is not None and 0 in zeros.shape:
            zeros = None
        block = (outputs if high < 1 else min(high, outputs), inputs if wide < 1 else min(wide, inputs))
        return (outputs, inputs), scaled(name, numbers, scales, block, zeros)

    def _int4(self, module: str, tensors: Tensors, group: int) -> tuple[tuple[int, int], Callable[[], Codes]]:
        packed, scales, zeros = (
            self.needed(module, tensors, s) for s in ("_weight_qdata", "_weight_scale", "_weight_zero_point")
        )
        outputs, halves = two_dimensions(f"{module}._weight_qdata", packed)
        inputs = 2 * halves
        group = inputs if group < 1 else group
        for suffix, source in (("_weight_scale", scales), ("_weight_zero_point", zeros)):
            self.fit(module, suffix, source, (-(-inputs // group), outputs))

        def make() -> Codes:
            codes = nibbles(integers(f"{module}._weight_qdata", packed, torch.uint8, torch.int8).view(torch.uint8))
            factors, added = scales.read().float().t(), zeros.read().float().t()
            signed = torch.tensor([*range(8), *range(-8, 0)], dtype=torch.float32)
            return Codes(codes, factors, group, table=signed, added=added)

        return (outputs, inputs), make

    def _kind(self, module: str) -> tuple[str, tuple[int, int]]:
        """The class of a module's weight, and its block: outputs and inputs that share a scale."""
        try:
            said = self.about[f"{module}.weight"]
            about = json.loads(said) if isinstance(said, str) else said
            kind, data = about["_type"], about["_data"]
            high, wide = data["block_size"][-2:]
            if type(high) is not int or type(wide) is not int:
                raise ValueError("its block_size is no pair of counts")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.folder}: the header of its weights does not say what {shorten(module)}.weight is "
                f"({shorten(error, 100)}). Save it with torchao's safetensors support."
            ) from error
        if kind not in KINDS:
            raise UnsupportedModelError(
                f"{self.folder}: {shorten(module)}.weight is torchao's {shorten(kind, 60)}, which is not supported; "
                f"{', '.join(KINDS)} are. Save it as one of these."
            )
        return kind, (high, wide)
