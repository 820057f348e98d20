"""compressed-tensors, which LLM Compressor writes: integers and floats of 4 and 8 bits, by groups of modules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from octavo.errors import CheckpointError, UnsupportedModelError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.module_rules import matches
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.formats.scaled import fp4_pairs, scaled, single, two_dimensions
from octavo.loading.formats.unpacking import unpacked, words_of

FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision", "dense"),
)
BITS = (1, 2, 3, 4, 5, 6, 7, 8)


class CompressedTensorsWeights(QuantizedWeights):
    """`weight_packed` with its `weight_scale`, or an 8-bit `weight` with one.

    Integers are packed along the inputs, the first in the lowest bits, with their middle added; so are
    `weight_zero_point`s, along the outputs. `weight_g_idx` has each input's group. Pairs of e2m1 are uint8, the first
    in the low half, and `weight_global_scale` is divided by.
    """

    name = "compressed-tensors"
    reads = (
        "pack-quantized of 1 to 8 bits with zeros and `actorder`, int8, FP8 (tensor, channel, block), NVFP4, "
        "MXFP4; groups of modules"
    )
    held = "codes of 4 or 8 bits with float32 scales, 8-bit floats, e2m1 (NVFP4)"
    of_weight = ("weight_scale", "weight_packed")
    beside = (
        *("weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale"),
        *("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point"),
        *("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"),
    )

    def __init__(self, folder: Path, load_format: str, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, load_format, settings)
        groups = settings.get("config_groups") or {}
        self.groups = [group for group in groups.values() if isinstance(group, Mapping)] if groups else []
        for written in [settings.get("format", "dense"), *(group.get("format") for group in self.groups)]:
            if written is not None and written not in FORMATS:
                raise UnsupportedModelError(
                    f"{folder / 'config.json'}: compressed-tensors in the format {shorten(written, 60)!r} are not "
                    f"supported; {', '.join(FORMATS)} are. Take a checkpoint in one of these, or without quantization."
                )

    def is_expected(self) -> bool:
        return any(group.get("weights") for group in self.groups) and self.settings.get("format") != "dense"

    def scheme(self, module: str) -> Mapping[str, Any]:
        """How a module's weight is quantized: by its name, an expression of names, or as all layers are."""
        named = (g for g in self.groups if any(_names(target, module) for target in g.get("targets") or ()))
        every = (g for g in self.groups if "Linear" in (g.get("targets") or ()))
        weights = (next(named, None) or next(every, None) or {}).get("weights")
        if not isinstance(weights, Mapping):
            raise CheckpointError(
                f"{self.folder / 'config.json'}: no group of its quantization has {shorten(module)} among its targets, "
                "and its weight is quantized. Is config.json its own?"
            )
        return weights

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        scheme, scales = self.scheme(module), self.needed(module, tensors, "weight_scale")
        if "weight_packed" not in tensors:
            return self._numbers(module, tensors, scheme)
        packed = tensors["weight_packed"]
        if scheme.get("type") == "float":
            group = 2 * packed.shape[-1] // max(1, scales.shape[-1])
            whole = tensors.get("weight_global_scale")
            factor = None if whole is None else lambda: 1 / single(f"{module}.weight_global_scale", whole)
            return fp4_pairs(f"{module}.weight_packed", packed, scales, max(1, group), factor)
        return self._integers(module, tensors, self.integer("num_bits", None, BITS, scheme))

    def _integers(self, module: str, tensors: Tensors, bits: int) -> tuple[tuple[int, int], Callable[[], Codes]]:
        packed, scales, shape = (
            self.needed(module, tensors, s) for s in ("weight_packed", "weight_scale", "weight_shape")
        )
        self.fit(module, "weight_shape", shape, (2,))
        outputs, inputs = (int(n) for n in shape.read().tolist())
        self.fit(module, "weight_packed", packed, (outputs, words_of(inputs, bits)))
        _, groups = two_dimensions(f"{module}.weight_scale", scales)
        self.fit(module, "weight_scale", scales, (outputs, groups))
        zeros, order = tensors.get("weight_zero_point"), tensors.get("weight_g_idx")
        if zeros is not None:
            self.fit(module, "weight_zero_point", zeros, (words_of(outputs, bits), groups))
        if order is not None:
            self.fit(module, "weight_g_idx", order, (inputs,))
        group = -(-inputs // max(1, groups))

        def make() -> Codes:
            codes = unpacked(integers(f"{module}.weight_packed", packed, torch.int32), bits, inputs)
            means = torch.full((outputs, groups), 1 << (bits - 1), dtype=torch.uint8)
            if zeros is not None:
                means = unpacked(integers(f"{module}.weight_zero_point", zeros, torch.int32).t(), bits, outputs).t()
            own = None if order is None else order.read().long()
            if own is not None and bool((own < 0).any()):  # as it is written before it is known
                own = None
            if own is not None and int(own.max()) >= groups:
                self.fit(module, "weight_g_idx (of more groups)", scales, (outputs, int(own.max()) + 1))
            return Codes(codes, scales.read().float(), group, zeros=means, groups=own)

        return (outputs, inputs), make

    def _numbers(
        self, module: str, tensors: Tensors, scheme: Mapping[str, Any]
    ) -> tuple[tuple[int, int], Callable[[], Codes]]:
        """8-bit integers or floats, as they are."""
        weight, scales, name = self.needed(module, tensors, "weight"), tensors["weight_scale"], f"{module}.weight"
        outputs, inputs = two_dimensions(name, weight)
        strategy = scheme.get("strategy") or ("group" if scheme.get("group_size") else "tensor")
        if strategy == "block":
            high, wide = self._block(scheme.get("block_structure"))
            block = (min(high, outputs), min(wide, inputs))
        elif strategy in ("group", "tensor_group"):
            block = (1, self.integer("group_size", None, range(1, inputs + 1), scheme))
        else:
            block = (outputs if scales.shape in ((), (1,), (1, 1)) else 1, inputs)
        return (outputs, inputs), scaled(name, weight, scales, block, tensors.get("weight_zero_point"))

    def _block(self, given: object) -> tuple[int, int]:
        """Outputs and inputs of a block, a list or as the text "128x128"."""
        sizes: Any = given.split("x") if isinstance(given, str) else given
        try:
            high, wide = (int(n) for n in sizes)
        except (TypeError, ValueError):
            high = wide = 0
        if high < 1 or wide < 1:
            raise CheckpointError(
                f"{self.folder / 'config.json'}: block_structure of its quantization is {shorten(given, 60)!r} "
                "(expected: two counts, such as [128, 128])."
            )
        return high, wide


def _names(target: object, module: str) -> bool:
    if not isinstance(target, str):
        return False
    return matches(target.removeprefix("re:"), module) if target.startswith("re:") else target == module
