"""What parts take of a checkpoint. The loader fills these slots, and looks into no part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from octavo.ops import PackedLinear


class Role(Enum):
    """What a weight does, which decides the numbers that it is held in."""

    FLOAT32 = auto()
    """Few and delicate values, in float32: norms, biases, parameters of a state."""
    ADDED = auto()
    """In the activations' dtype, which it meets as it is: positions."""
    MULTIPLIED = auto()
    """Rows are multiplied with it. It is kept as it is stored, or may be rounded to fewer bits."""
    EXACT = auto()
    """As MULTIPLIED, and never rounded: routers, heads of scores."""
    HEAD = auto()
    """As MULTIPLIED, and rounded less: a logit's error is the answer's own."""
    TABLE = auto()
    """A vector for each token, in a weight's dtype or as it is stored."""
    TIED = auto()
    """A table that is the head as well."""


@dataclass
class WeightSlot:
    """A tensor that a part takes, whole or in named segments of its rows."""

    shape: tuple[int, ...]
    role: Role
    load: Callable[[Tensor | PackedLinear], None]
    """Takes it when it is whole: a Tensor for FLOAT32 and ADDED, and for a TABLE whose dtype is the activations';
    packed for computing otherwise."""
    segments: Mapping[str, int] = field(default_factory=dict)
    """Rows of each, in their order."""
    do_without: Callable[[], None] | None = None
    """Called where the checkpoint has none; None where it must be there."""

    def rows(self, segment: str | None) -> slice:
        """Which rows `segment` fills; all for None."""
        if segment is None:
            return slice(0, self.shape[0] if self.shape else None)
        names = list(self.segments)
        first = sum(self.segments[name] for name in names[: names.index(segment)])
        return slice(first, first + self.segments[segment])


@runtime_checkable
class TakesWeights(Protocol):
    """A part that says itself what it takes. Of others, each parameter is a slot."""

    def weight_slots(self) -> dict[str, WeightSlot]:
        """By name."""
        ...


def weight_slots(model: nn.Module) -> dict[str, WeightSlot]:
    """All that the parts of a model take, by path."""
    slots = dict[str, WeightSlot]()
    for prefix, module in model.named_modules():
        own = module.weight_slots() if isinstance(module, TakesWeights) else _parameters(module)
        slots |= {f"{prefix}.{name}" if prefix else name: slot for name, slot in own.items()}
    return slots


def _parameters(module: nn.Module) -> dict[str, WeightSlot]:
    role = Role.FLOAT32 if getattr(module, "float32_parameters", False) else Role.ADDED
    return {
        name: WeightSlot(tuple(parameter.shape), role, partial(_set, module, name))
        for name, parameter in module.named_parameters(recurse=False)
    }


def _set(module: nn.Module, name: str, value: Tensor | PackedLinear) -> None:
    assert isinstance(value, Tensor)
    setattr(module, name, nn.Parameter(value, requires_grad=False))
