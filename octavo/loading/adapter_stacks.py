"""PEFT's target_parameters: one pair of matrices for a parameter that has the weights of all experts.

Of a parameter `[experts, outputs, inputs]`, `lora_A` is `[experts * rank, inputs]`, expert by expert, and column
`j * experts + e` of `lora_B` is expert e's. PEFT before 0.19 has outputs and inputs the other way round. A parameter of
two axes has one pair of matrices, as any layer. Several parameters of one module lie in each other: the first that the
module has is the innermost, with the most `.base_layer` in its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.loading.adapter_places import Place, Places
from octavo.loading.tensor_source import Transform

SPLIT = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}
"""Stacks of newer classes, and the layers that checkpoints have of each expert."""
ORDER = ("gate_up_proj", "w1", "v1", "w2", "down_proj")
"""Parameters in the order in which modules have them."""
MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Piece:
    """One expert's weight in the model."""

    place: Place
    rows: Tensor
    """The published rows that it has: of the expert's own matrix, or of all experts' where that has two axes."""
    turned: bool
    """Whether these rows are its inputs, and not its outputs."""

    @property
    def columns(self) -> int:
        """Of the published matrix."""
        return self.place.outputs if self.turned else self.place.inputs


@dataclass(frozen=True)
class Stack:
    """Where a parameter's weights are in the model."""

    name: str
    experts: Sequence[Sequence[Piece]]
    shape: tuple[int, int]
    """Of each expert's published matrix; of all experts' where the parameter has two axes."""
    is_flat: bool
    """Whether it has two axes."""

    def fits(self, a: Tensor, b: Tensor) -> bool:
        """Whether the matrices are of this parameter, whichever way round."""
        if a.dim() != 2 or b.dim() != 2 or b.shape[1] != len(a):
            return False
        sizes = (len(b), a.shape[1])
        if self.is_flat:
            return sizes == self.shape
        return sizes in (self.shape, self.shape[::-1]) and not len(a) % len(self.experts)

    def rank(self, a: Tensor) -> int:
        """What each expert's matrices have."""
        return len(a) if self.is_flat else len(a) // len(self.experts)

    def low_rank(self, a: Tensor, b: Tensor, old: bool) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """Each weight's place and its own two matrices, `[rank, inputs]` and `[outputs, rank]`.

        Args:
            a, b: the parameter's, which fit.
            old: of the order before 0.19, where their sizes do not tell.
        """
        count, rank = len(self.experts), self.rank(a)
        swapped = (len(b), a.shape[1]) != self.shape or (old and self.shape[0] == self.shape[1])
        for e, pieces in enumerate(self.experts):
            high, wide = b, a  # high @ wide is added to the published matrix
            if not self.is_flat:
                own_a, own_b = a[e * rank : (e + 1) * rank], b.reshape(len(b), rank, count)[:, :, e]
                high, wide = (own_a.t(), own_b.t()) if swapped else (own_b, own_a)
            for piece in pieces:
                own = high[piece.rows]
                one, other = (own.t(), wide.t()) if piece.turned else (wide, own)
                yield piece.place, one.contiguous(), other.contiguous()


def stack_of(module: str, a: Tensor, b: Tensor, targets: Sequence[str], places: Places) -> Stack | None:
    """The parameter that a module's matrices are for; None where they are of an ordinary module."""
    depth, owner = module.count(".base_layer"), module.replace(".base_layer", "")
    leaves = {target.rpartition(".")[2] for target in targets}
    ordered = sorted(leaves, key=lambda leaf: (ORDER.index(leaf) if leaf in ORDER else -1, leaf))
    names = [name for leaf in ordered if is_target(name := f"{owner}.{leaf}", targets)]
    stacks = [s for name in names if (s := _split(name, places) or _stacked(name, b, places)) is not None]
    fits = [stack.fits(a, b) for stack in stacks]
    if (own := len(stacks) - 1 - depth) >= 0 and fits[own]:
        return stacks[own]
    return stacks[fits.index(True)] if True in fits else None


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether a parameter is among target_parameters."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _split(name: str, places: Places) -> Stack | None:
    """A parameter whose checkpoint has each expert by itself."""
    root, _, leaf = name.rpartition(".")
    for leaves in SPLIT.get(leaf, ()):
        experts: list[list[Piece]] = []
        while len(experts) < MOST_EXPERTS:
            found = [places.find(f"{root}.{len(experts)}.{part}") for part in leaves]
            own = [place for place in found if place is not None]
            if len(own) < len(leaves):
                break
            first, pieces = 0, list[Piece]()
            for place in own:
                rows = torch.arange(first, first + place.outputs)
                pieces.append(Piece(place, place.rows_in_order(rows), turned=False))
                first += place.outputs
            experts.append(pieces)
        if experts:
            return Stack(name, experts, (first, experts[0][0].place.inputs), is_flat=False)
    return None


def _stacked(name: str, b: Tensor, places: Places) -> Stack | None:
    """A parameter that the checkpoint has as one tensor. `b` tells how many rows one of two axes has."""
    into = places.locate(name)
    if into is None or not into.stacked:
        return None
    experts = list[Place]()
    while len(experts) < MOST_EXPERTS:
        place = places.place_of(into.path.replace("{e}", str(len(experts))))
        if place is None:
            break
        experts.append(place)
    if not experts:
        return None
    if into.transform is None:
        rows = torch.arange(experts[0].outputs)
        pieces = [[Piece(place, rows, turned=False)] for place in experts]
        return Stack(name, pieces, (experts[0].outputs, experts[0].inputs), is_flat=False)
    return _moved(name, into.transform, experts, len(b))


def _moved(name: str, transform: Transform, experts: Sequence[Place], rows: int) -> Stack | None:
    """A parameter that is changed before it is stacked: its rows are found by what becomes of their numbers."""
    count, one = len(experts), experts[0]
    tagged = [torch.stack([torch.arange(rows), torch.arange(rows) + rows], dim=1)]
    tagged += [
        torch.stack([torch.arange(count * n), torch.arange(count * n) + count * n], dim=1).view(count, n, 2)
        for n in dict.fromkeys((one.outputs, one.inputs))
    ]
    for tags in tagged:
        try:
            moved = transform(tags)
        except (RuntimeError, TypeError, ValueError):
            continue
        total = tags[..., 0].numel()
        for turned in (False, True):
            found = moved.transpose(1, 2) if turned and moved.dim() == 3 else moved
            expected = (count, one.inputs if turned else one.outputs, 2)
            if found.shape != expected or not bool((found[..., 1] - found[..., 0] == total).all()):
                continue
            first = [e * (total // count) if tags.dim() == 3 else 0 for e in range(count)]
            pieces = [[Piece(p, found[e, :, 0] - first[e], turned)] for e, p in enumerate(experts)]
            shape = (tags.shape[-2], pieces[0][0].columns)
            return Stack(name, pieces, shape, is_flat=tags.dim() == 2)
    return None
