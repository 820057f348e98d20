"""Where an adapter's modules are in the model: through the table of names that checkpoints are read with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from octavo.loading.model import Slot
from octavo.loading.tensor_source import Transform
from octavo.parts import Into, Names

BEGINNINGS = ("", "model.", "transformer.", "backbone.", "gpt_neox.", "language_model.", "model.language_model.")
"""What the tree of modules may have before a published name, or leave out."""
RENAMED = {
    ".mlp.gate.": ".block_sparse_moe.gate.",
    ".mlp.router.": ".block_sparse_moe.gate.",
    ".mlp.experts.": ".block_sparse_moe.experts.",
    ".block_sparse_moe.router.": ".block_sparse_moe.router.layer.",
    ".block_sparse_moe.experts.gate_up_proj.": ".block_sparse_moe.input_linear.weight.",
    ".block_sparse_moe.experts.down_proj.": ".block_sparse_moe.output_linear.weight.",
    "lm_head.": "embed_out.",
    ".mlp.shared_experts.": ".mlp.shared_expert.",
}
"""What transformers 5 calls modules of families that were published with another name."""


@dataclass(frozen=True)
class Place:
    """A module that was published, in a weight of the model's."""

    path: str
    """Of the part that holds the weight."""
    shape: tuple[int, ...]
    """Of the module's own rows, as the part has them."""
    first: int
    """The first of these rows in the weight."""
    all_outputs: int
    """Rows of the whole weight."""
    transform: Transform | None
    """What is done to the published tensor."""

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        return self.shape[-1]

    @property
    def is_whole(self) -> bool:
        return self.outputs == self.all_outputs

    @property
    def moves_outputs(self) -> bool:
        """Whether the published weight is changed by no more than the order of its outputs."""
        return self.transform is None or self.order is not None

    @cached_property
    def order(self) -> Tensor | None:
        """Which published output each row of the weight was, where a transform does no more than move them."""
        return None if self.transform is None else output_order(self.transform, self.outputs)

    def rows_in_order(self, tensor: Tensor) -> Tensor:
        """`[outputs, ...]` with a row for each published output, as the weight has them."""
        return tensor if self.order is None else tensor[self.order]

    def fitted(self, tensor: Tensor) -> Tensor | None:
        """A published tensor as the weight's rows; None where it does not fit. A table may have more rows."""
        try:
            fitted = tensor if self.transform is None else self.transform(tensor)
        except (RuntimeError, ValueError):
            return None
        grown = self.is_whole and fitted.dim() == 2 and fitted.shape[0] > self.outputs
        if fitted.shape == self.shape or (grown and fitted.shape[1:] == self.shape[1:]):
            return fitted.contiguous()
        return None


def output_order(transform: Transform, outputs: int) -> Tensor | None:
    """Which published output each row of a changed weight was, of a change that moves rows or turns the weight round.

    Found by what becomes of a weight of two columns, each entry of which tells its output and column. None for a
    change that does more, which matrices of low rank cannot follow.
    """
    tagged = torch.stack([torch.arange(outputs), torch.arange(outputs) + outputs], dim=1)
    for published in (tagged, tagged.t().contiguous()):  # [outputs, inputs], or as GPT-2's Conv1D
        try:
            moved = transform(published)
        except (RuntimeError, TypeError, ValueError):
            continue
        if moved.dtype != tagged.dtype or moved.dim() != 2 or moved.shape[1] != 2:
            continue
        order = moved[:, 0]
        if bool(((moved[:, 1] - order == outputs) & (order >= 0) & (order < outputs)).all()):
            return order
    return None


class Places:
    """Finds modules.

    Args:
        names: the model's table.
        slots: shapes of its weights by path.
        does_without: whether a checkpoint may have a tensor for a path that the model has no weight at.
    """

    def __init__(self, names: Names, slots: Mapping[str, Slot], does_without: Callable[[str], bool]) -> None:
        self.names, self._slots, self._does_without = names, slots, does_without

    def find(self, module: str) -> Place | None:
        """The place of a module by its name in the tree of modules; None for an unknown one."""
        for name in spellings(module):
            for leaf in (".weight", ".bias"):
                into = self.names.locate(name + leaf)
                if into is not None and not into.stacked and (place := self._place(into)) is not None:
                    return place
        return None

    def is_left_out(self, module: str) -> bool:
        """Whether a module is one that this model does without, as a head where embeddings are asked for."""
        into = self.locate(f"{module}.weight")
        return into is not None and self._does_without(into.path)

    def locate(self, name: str) -> Into | None:
        """Where a published tensor goes, for any spelling of its name."""
        return next((into for each in spellings(name) if (into := self.names.locate(each)) is not None), None)

    def _place(self, into: Into) -> Place | None:
        owner = into.path.rpartition(".")[0]
        slot, segment = self._slots.get(f"{owner}.weight"), None
        if slot is None:
            outer, _, segment = owner.rpartition(".")
            slot = self._slots.get(f"{outer}.weight")
            if slot is None or segment not in slot.segments:
                return None
            owner = outer
        first, count = slot.rows(segment)
        return Place(owner, (count, *slot.shape[1:]), first, slot.shape[0], into.transform)

    def place_of(self, path: str, transform: Transform | None = None) -> Place | None:
        """The place that a parameter's path names."""
        return self._place(Into(path, transform))


def spellings(name: str) -> list[str]:
    """A name of the tree of modules as checkpoints may have it, the likeliest first."""
    renamed = [name]
    for here, published in RENAMED.items():
        renamed += [f"{n}.".replace(here, published)[:-1] for n in renamed if here in f"{n}."]
    found = dict.fromkeys(renamed)
    for each in renamed:
        bare = [each.removeprefix(b) for b in BEGINNINGS]
        found |= dict.fromkeys(b + rest for rest in bare for b in BEGINNINGS)
    return list(found)
