"""What a step must not look at where it is recorded: values that are another step's next time."""

from collections.abc import Sequence
from typing import Any


class NotRecordableError(Exception):
    """What a model computes depends on more than the step's rows."""


class BySequence(Sequence[Any]):
    """In place of what a plan says of single sequences, which a recording must not depend on."""

    def __len__(self) -> int:
        raise NotRecordableError("it treats each sequence by itself")

    def __getitem__(self, index: Any) -> Any:
        return len(self)
