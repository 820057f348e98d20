"""What parts take of a checkpoint. The loader fills these slots, and looks into no part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Protocol, runtime_checkable

import torch
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


Ranges = tuple[tuple[int, int], ...]
"""[first, end) each, in order."""


@dataclass(frozen=True)
class Shard:
    """What one of several ranks takes of a tensor. A range may be empty, and may be taken by several ranks."""

    rows: Ranges | None = None
    """Of the first dimension; None for all."""
    columns: Ranges | None = None
    """Of the second dimension; None for all."""

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is taken of a tensor of `shape`."""
        given = [None if ranges is None else ranges_size(ranges) for ranges in (self.rows, self.columns)]
        taken = [size if own is None else own for own, size in zip(given, shape, strict=False)]
        return (*taken, *shape[2:])

    def of(self, tensor: Tensor) -> Tensor:
        """What is taken of a whole tensor."""
        for dim, ranges in enumerate((self.rows, self.columns)):
            if ranges is not None:
                tensor = torch.cat([tensor.narrow(dim, first, end - first) for first, end in ranges], dim)
        return tensor


def ranges_size(ranges: Ranges) -> int:
    """How much ranges hold in all."""
    return sum(end - first for first, end in ranges)


@dataclass
class WeightSlot:
    """A tensor that a part takes, whole or in named segments of its rows."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    role: Role
    load: Callable[[Tensor | PackedLinear], None]
    """Takes what `shard` says, when all of it is there: a Tensor for FLOAT32 and ADDED, and for a TABLE whose dtype is
    the activations'; packed for computing otherwise."""
    segments: Mapping[str, int] = field(default_factory=dict)
    """Rows of each, in their order."""
    do_without: Callable[[], None] | None = None
    """Called where the checkpoint has none; None where it must be there."""
    shard: Shard | None = None
    """What this rank takes of the tensor; None for all."""
    share: float = 1.0
    """How many of all tokens meet it: below one for an expert's, without which most steps do."""

    @property
    def is_gated(self) -> bool:
        """Whether rows are multiplied with both halves together, of which one is the other's gate."""
        return list(self.segments) == ["gate", "up"]

    def rows(self, segment: str | None) -> slice:
        """Which rows `segment` fills; all for None."""
        if segment is None:
            return slice(0, self.shape[0] if self.shape else None)
        names = list(self.segments)
        first = sum(self.segments[name] for name in names[: names.index(segment)])
        return slice(first, first + self.segments[segment])


@runtime_checkable
class TakesWeights(Protocol):
    """A part that says itself what it takes. Of others, each parameter is a slot.

    Such another part that is split has `shards`: for names of parameters the whole shape and this rank's Shard; and
    one whose parameters are filled in parts has `parameter_segments`.
    """

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


def shard_parameter(module: nn.Module, name: str, shard: Shard) -> None:
    """Leave of a parameter of `module`, not loaded yet, what a shard takes of it, and have its slot say so."""
    shards = module.__dict__.setdefault("shards", {})
    assert name not in shards, "a parameter is split once"
    parameter = getattr(module, name)
    shards[name] = (tuple(parameter.shape), shard)
    setattr(module, name, nn.Parameter(shard.of(parameter.data), requires_grad=False))


def _parameters(module: nn.Module) -> dict[str, WeightSlot]:
    role = Role.FLOAT32 if getattr(module, "float32_parameters", False) else Role.ADDED
    shards: dict[str, tuple[tuple[int, ...], Shard]] = getattr(module, "shards", {})
    segments: dict[str, Mapping[str, int]] = getattr(module, "parameter_segments", {})
    slots = {}
    for name, parameter in module.named_parameters(recurse=False):
        shape, shard = shards.get(name, (tuple(parameter.shape), None))
        slots[name] = WeightSlot(shape, role, partial(_set, module, name), segments.get(name, {}), shard=shard)
    return slots


def _set(module: nn.Module, name: str, value: Tensor | PackedLinear) -> None:
    assert isinstance(value, Tensor)
    setattr(module, name, nn.Parameter(value, requires_grad=False))
