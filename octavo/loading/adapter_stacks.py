"""PEFT's target_parameters: one pair of matrices for a parameter that stacks a weight for each expert.

`lora_A` is `[experts * rank, ...]`, expert by expert; column `j * experts + e` of `lora_B` is expert e's. Several
stacks of one module lie in each other: the innermost (with `.base_layer` in its name) is the module's first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.loading.adapter_places import Place, Places
from octavo.loading.tensor_source import Transform

SPLIT = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""Stacks of newer classes, and the layers that checkpoints have of each expert."""
MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Stack:
    """Where a stack's weights are in the model."""

    name: str
    straight: bool
    """Whether rows of `b @ a` are an expert's outputs, and not its inputs."""
    places: Sequence[Sequence[tuple[Place, Tensor | slice, Tensor | slice]]]
    """For each expert its places, each with the published outputs and inputs that it has."""

    @property
    def num_experts(self) -> int:
        return len(self.places)


def stack_of(module: str, a: Tensor, b: Tensor, targets: Sequence[str], places: Places) -> Stack | None:
    """The stack that a module's matrices are for; None where they are of an ordinary module.

    Where two fit, the nesting decides.
    """
    depth, owner = module.count(".base_layer"), module.replace(".base_layer", "")
    names = []
    for target in targets:
        holder, _, leaf = target.rpartition(".")
        if not holder or re.search(rf"(^|\.){re.escape(holder)}$", owner):
            names.append(f"{owner}.{leaf}")
    fits = []
    for name in sorted(names, key=lambda n: n.endswith("down_proj")):
        found = _split(name, a, b, places) or _stacked(name, a, b, places)
        if found is not None and not len(a) % found.num_experts and b.shape[1] == len(a):
            fits.append(found)
    if not fits:
        return None
    return fits[0 if len(fits) == 1 or depth else -1]


def _split(name: str, a: Tensor, b: Tensor, places: Places) -> Stack | None:
    """A stack whose checkpoint has each expert by itself."""
    root, _, leaf = name.rpartition(".")
    for leaves in SPLIT.get(leaf, ()):
        experts: list[list[tuple[Place, Tensor | slice, Tensor | slice]]] = []
        while len(experts) < MOST_EXPERTS:
            own = [places.find(f"{root}.{len(experts)}.{part}") for part in leaves]
            if any(place is None for place in own):
                break
            first, pieces = 0, list[tuple[Place, Tensor | slice, Tensor | slice]]()
            for place in own:
                assert place is not None
                order = torch.arange(first, first + place.outputs)
                pieces.append((place, place.rows_in_order(order), slice(None)))
                first += place.outputs
            experts.append(pieces)
        if experts:
            shape = first, experts[0][0][0].inputs
            if (len(b), a.shape[1]) in (shape, shape[::-1]):
                return Stack(name, (len(b), a.shape[1]) == shape, experts)
    return None


def _stacked(name: str, a: Tensor, b: Tensor, places: Places) -> Stack | None:
    """A stack that the checkpoint has as one tensor."""
    into = places.locate(name)
    if into is None or not into.stacked:
        return None
    experts = list[Place]()
    while len(experts) < MOST_EXPERTS:
        place = places.place_of(into.path.replace("{e}", str(len(experts))))
        if place is None:
            break
        experts.append(place)
    if not experts or len(a) % len(experts):
        return None
    sizes = (len(b), a.shape[1])
    for straight, published in ((True, sizes), (False, sizes[::-1])):
        found = _moved(into.transform, len(experts), published, experts[0].shape)
        if found is not None:
            rows, columns, turned = found
            return Stack(name, straight != turned, [[(place, rows, columns)] for place in experts])
    return None


def _moved(
    transform: Transform | None, experts: int, sizes: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Tensor | slice, Tensor | slice, bool] | None:
    """Which published rows and columns of an expert its outputs and inputs are, and whether columns are its outputs.

    None where a stack of such `sizes` does not fit.
    """
    if transform is None:
        return (slice(None), slice(None), False) if sizes == shape else None
    high, wide = sizes
    flat = torch.arange(experts * high * wide).view(experts, high, wide)
    for published in (flat, flat.view(experts * high, wide)):
        try:
            moved = transform(published)
        except (RuntimeError, ValueError):
            continue
        if moved.shape != (experts, *shape):
            continue
        first = moved[0]
        rows, columns = first[:, 0] // wide, first[0] % wide
        if bool((first == rows[:, None] * wide + columns).all()):
            return rows, columns, False
        rows, columns = first[:, 0] % wide, first[0] // wide
        if bool((first == columns * wide + rows[:, None]).all()):
            return rows, columns, True
    return None
