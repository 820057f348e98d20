"""Which weights are held in memory, and which stay on disk: said before any is read."""

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.loading.precision import Precision
from octavo.ops.weight_kinds import WeightKind
from octavo.parts.weight_slots import Role
from octavo.sizes import format_size

log = logging.getLogger("octavo")

MEMORY_SHARE = 0.9
"""Of the free memory, what weights may take where experts could stay on disk: caches need some as well."""
ROUNDED_BYTES = {WeightKind.Q8_0: 34 / 32, WeightKind.Q4_1: 20 / 32}
"""Of a weight that is rounded as it is read."""


@dataclass(frozen=True)
class WeightSize:
    """What one weight will take."""

    path: str
    role: Role
    count: int
    """Of numbers, in what this rank has."""
    of: int
    """Of numbers in the whole weight."""
    share: float
    """As of WeightSlot."""


@dataclass(frozen=True)
class Placement:
    """Which weights stay on disk."""

    experts: bool = False
    others: bool = False

    def on_disk(self, share: float) -> bool:
        """Whether a weight does that such a share of the tokens meets."""
        return self.experts if share < 1 else self.others


@dataclass(frozen=True)
class _Bytes:
    experts: int
    others: int
    met: int
    """Of experts that a token meets."""

    @property
    def all(self) -> int:
        return self.experts + self.others


def choose_placement(
    args: EngineArgs, weights: Iterable[WeightSize], precision: Precision, stored: int, free: int, folder: Path | None
) -> Placement:
    """What `weights_on_disk` asks for, of weights of these sizes, and says so.

    Args:
        stored: bytes of the checkpoint's files.
        free: bytes of memory for this rank.
        folder: where weights would be written; None where they cannot be.

    Raises ConfigError for weights that do not fit into memory, and cannot stay on disk, with what would help.
    """
    weights = list(weights)
    size, asked = _bytes(weights, precision, stored), args.weights_on_disk
    if asked == "off" or (asked == "auto" and size.all <= free * (MEMORY_SHARE if size.experts else 1)):
        return Placement()
    if folder is None:
        if asked == "auto" and size.all <= free:
            return Placement()
        raise ConfigError(
            f"{format_size(size.all)} of weights, {format_size(free)} of memory free: weights stay on disk "
            "(weights_on_disk) only where there is a folder for them. Set XDG_CACHE_HOME to one, on a fast disk."
        )
    placement = Placement(experts=bool(size.experts), others=size.others > free * MEMORY_SHARE)
    if placement.others and asked == "auto":
        raise ConfigError(
            f"{args.model}: {format_size(size.others)} of weights that every token needs, {format_size(free)} of "
            f"memory free. {_remedy(precision, weights)}weights_on_disk='on' runs it from disk, of which each token "
            f"reads up to {format_size(size.met + size.others)}; weights_on_disk='off' tries it in memory all the same."
        )
    if placement.experts or placement.others:
        what, met = "experts stay on disk and are read as they are chosen", size.met
        if placement.others:
            what, met = "they stay on disk and are read as they are needed", size.met + size.others
        log.warning(
            "%s: %s of weights, %s of memory free: %s (%s). Expect the disk's pace: a token reads up to %s, less what "
            "the system still has of them. %sThe more memory is free, the faster.",
            args.model,
            format_size(size.all),
            format_size(free),
            what,
            folder,
            format_size(met),
            _remedy(precision, weights) if size.all > free else "",
        )
    return placement


def check_room(folder: Path, wanted: int, name: str) -> None:
    """Raises ConfigError where a disk has less room than the weights that are to be written to it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (room := shutil.disk_usage(there).free) < wanted:
        raise ConfigError(
            f"{name}: its weights do not fit into memory, and are laid out on disk: {format_size(wanted)}, of which "
            f"{folder} has {format_size(room)} free. Make room there, or set XDG_CACHE_HOME to a folder on a disk "
            "that has it."
        )


def wanted_bytes(weights: Iterable[WeightSize], precision: Precision, stored: int) -> int:
    """What all weights take as they are packed, about."""
    return _bytes(list(weights), precision, stored).all


def _bytes(weights: list[WeightSize], precision: Precision, stored: int) -> _Bytes:
    average = stored / max(1, sum(w.of for w in weights))

    def size(w: WeightSize) -> float:
        if precision.as_stored and precision.is_packed(w.role):
            return w.count * average
        kind = precision.rounding_of(w.role)
        return w.count * (precision.dtype_of(w.role).itemsize if kind is None else ROUNDED_BYTES[kind])

    experts = sum(size(w) for w in weights if w.share < 1)
    others = sum(size(w) for w in weights if w.share >= 1)
    met = sum(size(w) * w.share for w in weights if w.share < 1)
    return _Bytes(math.ceil(experts), math.ceil(others), math.ceil(met))


def _remedy(precision: Precision, weights: list[WeightSize]) -> str:
    if precision.as_stored or precision.round_to is WeightKind.Q4_1:
        return ""
    rounded = sum(w.count for w in weights) * ROUNDED_BYTES[WeightKind.Q4_1]
    return f"quantization='q4' takes about {format_size(rounded)}. "
