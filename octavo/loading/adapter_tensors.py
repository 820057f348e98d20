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
NAMED = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.", ".lora_magnitude_vector.")
"""What files that were saved by hand have the adapter's name after."""


@dataclass
class ModuleTensors:
    """What an adapter has of one module."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """By PARTS, and whole tensors in the place of the module's own by their names (weight, bias)."""
    nesting: int = 0
    """How many `.base_layer` are in the name that its matrices have: of several stacks of one module, which."""


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, ModuleTensors]:
    """PEFT's tensors by the names of modules, which are those of the model that was trained.

    Raises InvalidRequestError for names that PEFT does not write, and for one of two matrices.
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
    for module, found in modules.items():
        for one, other in (("a", "b"), ("table_a", "table_b")):
            if (one in found.parts) != (other in found.parts):
                there, lacking = (one, other) if one in found.parts else (other, one)
                ends = {part: end for end, part in PARTS.items()}
                raise InvalidRequestError(
                    f"the adapter has {shorten(module)}{ends[there]} and no {ends[lacking][1:]}. Is its file complete?"
                )
        if "lengths" in found.parts and not {"a", "table_a"} & found.parts.keys():
            raise InvalidRequestError(f"the adapter has {shorten(module)}.lora_magnitude_vector and no lora_A.")
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
            nesting = module.count(".base_layer")
            # A stack of experts within another adapter's layer keeps its name, so that both are told apart.
            found = modules.setdefault(module, ModuleTensors(nesting=nesting))
            found.parts[part] = tensor
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
