"""GPTQ (Frantar et al. 2023), as AutoGPTQ, GPTQModel and AutoRound write it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from octavo.errors import UnsupportedModelError, shorten
from octavo.loading.formats.codes import Codes
from octavo.loading.formats.module_rules import matches
from octavo.loading.formats.quantized import QuantizedWeights, Tensors, integers
from octavo.loading.formats.unpacking import unpacked, words_of

BITS = (2, 3, 4, 8)


class GPTQWeights(QuantizedWeights):
    """`qweight` `[inputs in words, outputs]`, `qzeros` `[groups, outputs in words]`, `scales` `[groups, outputs]`.

    `g_idx` `[inputs]` has the group of each input, and may be left out where they follow each other. Stored zeros are
    less one, unless the format is `gptq_v2`; where the quantization is symmetric they are the middle, whatever is
    stored.
    """

    name = "gptq"
    reads = "2, 3, 4 and 8 bits, symmetric or not, gptq and gptq_v2, `desc_act`, `dynamic` rules; a quantized head"
    held = "codes of 4 or 8 bits with float32 scales"
    of_weight = ("qweight", "qzeros", "scales")
    beside = ("g_idx",)
    inputs_first = True

    def __init__(self, folder: Path, load_format: str, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, load_format, settings)
        written = settings.get("checkpoint_format", settings.get("format", "gptq"))
        if written not in ("gptq", "gptq_v2", None):
            raise UnsupportedModelError(
                f"{folder / 'config.json'}: weights of GPTQ in the format {shorten(written, 60)!r} are not supported; "
                "gptq and gptq_v2 are. Take a checkpoint in one of these."
            )
        self.zeros_less_one = written != "gptq_v2"

    def rule(self, module: str) -> Mapping[str, Any]:
        """What holds for a module in place of the settings (GPTQModel's `dynamic`, AutoRound's `extra_config`)."""
        for pattern, rule in (self.settings.get("dynamic") or {}).items():
            if not pattern.startswith("-:") and matches(pattern.removeprefix("+:"), module):
                return {**self.settings, **rule} if isinstance(rule, Mapping) else self.settings
        own = (self.settings.get("extra_config") or {}).get(module)
        return {**self.settings, **own} if isinstance(own, Mapping) else self.settings

    def codes(self, module: str, tensors: Tensors) -> tuple[tuple[int, int], Callable[[], Codes]]:
        weight, scales = (self.needed(module, tensors, suffix) for suffix in ("qweight", "scales"))
        rule = self.rule(module)
        bits, symmetric = self.integer("bits", None, BITS, rule), bool(rule.get("sym", True))
        inputs, (groups, outputs) = weight.shape[0] * 32 // bits, scales.shape
        self.fit(module, "qweight", weight, (words_of(inputs, bits), outputs))
        order, zeros = tensors.get("g_idx"), None
        if order is not None:
            self.fit(module, "g_idx", order, (inputs,))
        if not symmetric:
            zeros = self.needed(module, tensors, "qzeros")
            self.fit(module, "qzeros", zeros, (groups, words_of(outputs, bits)))
        group = -(-inputs // groups)
        in_order = torch.arange(inputs) // group

        def make() -> Codes:
            codes = unpacked(integers(f"{module}.qweight", weight, torch.int32).t(), bits, inputs)
            means = torch.full((outputs, groups), 1 << (bits - 1), dtype=torch.int16)
            if zeros is not None:
                stored = unpacked(integers(f"{module}.qzeros", zeros, torch.int32), bits, outputs).t()
                means = stored.to(torch.int16) + self.zeros_less_one
            own = in_order if order is None else integers(f"{module}.g_idx", order, torch.int32, torch.int64).long()
            if bool(((own < 0) | (own >= groups)).any()):
                self.fit(module, "g_idx (of more groups)", scales, (int(own.max()) + 1, outputs))
            is_plain = bool(torch.equal(own, in_order))
            return Codes(codes, scales.read().float().t(), group, zeros=means, groups=None if is_plain else own)

        return (outputs, inputs), make
