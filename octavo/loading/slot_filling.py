"""Slots of a model as they are filled: what is still to come, where a tensor goes, what is wrong."""

import math
from dataclasses import dataclass, field

from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.tensor_source import TensorSource
from octavo.ops import StoredRows
from octavo.parts.weight_slots import Ranges, Role, WeightSlot

SHOWN = 6
"""Names of tensors that a message has of each kind."""


@dataclass(frozen=True)
class HeldWeight:
    """What a part has taken."""

    size: int
    """Bytes, as it is stored."""
    count: int
    """Of numbers, in what this rank has."""
    role: Role
    share: float
    """As of WeightSlot."""


@dataclass
class Filling:
    """A slot that is being filled."""

    path: str
    slot: WeightSlot
    missing: set[str | None]
    """Segments that are still to come; None for a slot without."""
    unclaimed: set[str | None]
    """Those that no tensor's name and shape says it fills."""
    is_misshapen: bool = False
    """A tensor for it has a wrong shape: loading will fail, and it is never whole."""
    is_copied: bool = False
    """It was packed by an earlier start."""
    floats: Tensor | None = None
    stored: dict[str | None, StoredRows] = field(default_factory=dict)
    """What is packed as it is stored. A file may have what is made of segments as one tensor (None)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what this rank takes."""
        return self.slot.shape if self.slot.shard is None else self.slot.shard.shape_of(self.slot.shape)

    def held(self, size: int) -> HeldWeight:
        """What it is once it is filled, with so many bytes."""
        return HeldWeight(size, math.prod(self.shape), self.slot.role, self.slot.share)


@dataclass
class Place:
    """Where a tensor goes."""

    filling: Filling
    segment: str | None
    source: TensorSource
    """What this rank takes of it, as the slot has it."""
    rows: slice
    """Which rows of what the rank takes of the slot."""


@dataclass
class Problems:
    """What is wrong with a checkpoint, gathered so that one error tells all."""

    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_any(self, where: str, missing: list[str]) -> None:
        parts = []
        for label, names in (
            ("tensors missing", missing),
            ("tensors that the model has no place for", self.unexpected),
            ("tensors of a wrong shape", self.misshapen),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                shown = ", ".join(shorten(name, 200) for name in names[:SHOWN])
                parts.append(f"{len(names)} {label}: {shown}{more}")
        if parts:
            raise CheckpointError(
                f"{where} does not fit its config: {'; '.join(parts)}. "
                "Is the download complete, and config.json its own?"
            )


def taken_rows(slot: WeightSlot, segment: str | None) -> tuple[Ranges | None, slice]:
    """Which rows of a segment this rank takes, and which these are of all that it takes of the slot.

    Raises ValueError where those of one segment do not follow each other.
    """
    rows = slot.rows(segment)
    if slot.shard is None or slot.shard.rows is None:
        return None, rows
    taken, at, first, end = list[tuple[int, int]](), 0, 0, 0
    for begin, stop in slot.shard.rows:
        low, high = max(begin, rows.start), min(stop, rows.stop)
        if low < high:
            place = at + low - begin
            if taken and place != end:
                raise ValueError(f"rows {slot.shard.rows} of a weight do not follow its segments {dict(slot.segments)}")
            first, end = first if taken else place, place + high - low
            taken.append((low - rows.start, high - rows.start))
        at += stop - begin
    return tuple(taken) or ((0, 0),), slice(first, end)
