"""Tensors of an adapter's file, by the module that they are of: PEFT's names, and llama.cpp's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from octavo.errors import InvalidRequestError, shorten

BEGINNING = "base_model.model."
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "b_bias",
    ".lora_embedding_A": "table_a",
    ".lora_embedding_B": "table_b",
    ".lora_magnitude_vector.weight": "lengths",
    ".lora_magnitude_vector": "lengths",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".trainable_tokens_delta": "tokens",
    ".token_adapter.base_layer.weight": "weight",
}
"""What tensors of a module are, by the ends of their names. Despite its name, trainable_tokens_delta holds the rows."""
ENDS = {part: end[1:] for end, part in reversed(PARTS.items())}
NAMED = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.", ".lora_magnitude_vector.")
"""What files that were saved by hand have the adapter's name after."""


@dataclass
class ModuleTensors:
    """What an adapter has of one module."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """By PARTS, and whole tensors in the place of the module's own by their names (weight, bias)."""

    @property
    def lacking(self) -> str | None:
        """What is missing of what goes together; None where all is there."""
        parts = self.parts
        for one, other in (("a", "b"), ("table_a", "table_b")):
            if (one in parts) != (other in parts):
                return ENDS[other if one in parts else one]
        if "b_bias" in parts and "b" not in parts:
            return ENDS["b"]
        return ENDS["a"] if "lengths" in parts and not {"a", "table_a"} & parts.keys() else None


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, ModuleTensors]:
    """PEFT's tensors by the names of modules, which are those of the model that was trained.

    Raises InvalidRequestError for names that PEFT does not write.
    """
    modules: dict[str, ModuleTensors] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(BEGINNING)
        if name == key:
            raise InvalidRequestError(
                f"the adapter's tensor {shorten(key)!r} is not named as PEFT does it: {BEGINNING}... Save it by "
                "save_pretrained."
            )
        _put(modules, _without_adapter_name(name), tensor)
    return modules


def _without_adapter_name(name: str) -> str:
    """`q.lora_A.default.weight` as `q.lora_A.weight`."""
    for mark in NAMED:
        before, found, after = name.partition(mark)
        if found:
            leaf = after.rpartition(".")[2]
            if leaf in ("weight", "bias"):
                return before + mark + leaf
            return before + mark[:-1]  # lora_embedding_A and magnitudes are parameters themselves
    return name


def _put(modules: dict[str, ModuleTensors], name: str, tensor: Tensor) -> None:
    for end, part in PARTS.items():
        if name.endswith(end):
            module = name.removesuffix(end)
            # The stack of experts within another one's layer keeps `.base_layer`, so that both are told apart.
            modules.setdefault(module, ModuleTensors()).parts[part] = tensor
            return
    module, _, leaf = name.rpartition(".")
    if ".original_module" in module + ".":  # what the module was before training
        return
    owner, _, saved = module.partition(".modules_to_save")
    owner = owner.replace(".base_layer", "")
    parts = modules.setdefault(owner, ModuleTensors()).parts
    if module.endswith(".modules_to_save") or saved:
        parts.setdefault(leaf, tensor)  # PEFT may write it beside the plain name, and has the same there
    else:
        parts[leaf] = tensor
