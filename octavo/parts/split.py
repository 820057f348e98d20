"""Parts that several ranks hold together. One that does not say how it splits is whole everywhere."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class Split:
    """Which share of parts a rank has."""

    rank: int
    size: int
    """Ranks that share each part."""


@runtime_checkable
class TakesSplit(Protocol):
    """A part that says how it splits."""

    def split(self, split: Split) -> None:
        """Become a rank's share, before any weight is loaded.

        Raises ValueError, with nothing changed, that names what cannot be divided.
        """
        ...


def split_model(model: nn.Module, split: Split) -> None:
    """Leave of all parts of a model on the meta device what one rank has of them. Raises ValueError as `split` does."""
    for module in model.modules():
        if isinstance(module, TakesSplit):
            module.split(split)
