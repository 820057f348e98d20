"""What a step must not look at where it is recorded: values that are another step's next time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class NotRecordableError(Exception):
    """What a model computes depends on more than the step's rows."""


_IS_RECORDING = ContextVar("is_recording", default=False)


@contextmanager
def recording() -> Iterator[None]:
    """A step is tried or recorded in here, for others that come after it."""
    before = _IS_RECORDING.set(True)
    try:
        yield
    finally:
        _IS_RECORDING.reset(before)


def is_recording() -> bool:
    """Whether what is launched must serve whatever a later step has, and not this one alone."""
    return _IS_RECORDING.get()


class BySequence(Sequence[Any]):
    """In place of what a plan says of single sequences, which a recording must not depend on."""

    def __len__(self) -> int:
        raise NotRecordableError("it treats each sequence by itself")

    def __getitem__(self, index: Any) -> Any:
        return len(self)
