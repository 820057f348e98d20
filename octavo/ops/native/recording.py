"""A step's operations, recorded once and run again as one call: what a Python call each would cost is saved.

A recording is made by running the model on buffers of a fixed number of rows while nothing is computed: operations of
the core are written down, memory comes from an arena that stays, and any operation of PyTorch's own that computes ends
the attempt. Views and allocations are all that PyTorch does in a model that can be recorded.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from octavo.ops.native.library import Library

ARENA_BYTES = 1 << 30
"""Address space for a recording's buffers. Memory is taken only where they are written."""
ALIGNMENT = 64

_VIEWS = frozenset(
    (
        *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes"),
        *("squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias"),
    )
)
_ALLOCATIONS = frozenset(["empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"])


class NotRecordableError(Exception):
    """The model computes with something else than the core."""


class _Arena:
    """Memory of a recording. Buffers that are given up are used again, since operations run in the recorded order."""

    def __init__(self) -> None:
        self.memory = np.empty(ARENA_BYTES, dtype=np.uint8)
        self._start = -self.memory.ctypes.data % ALIGNMENT
        self._free: dict[int, list[int]] = {}

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = int(np.prod(shape, dtype=np.int64))
        size = max(1, -(-count * dtype.itemsize // ALIGNMENT)) * ALIGNMENT
        if free := self._free.get(size):
            offset = free.pop()
        else:
            offset, self._start = self._start, self._start + size
            if self._start > ARENA_BYTES:
                raise NotRecordableError("the step's buffers are too large")
        buffer = (ctypes.c_char * size).from_address(self.memory.ctypes.data + offset)
        weakref.finalize(buffer, self._free.setdefault(size, []).append, offset)  # when the last view of it is gone
        return torch.frombuffer(buffer, dtype=dtype, count=max(1, count))[:count].view(*shape)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes allocations from the arena, lets views pass, and refuses everything else."""

    def __init__(self, arena: _Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled, and importing what compiles takes a second and 40 MB."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in _VIEWS:
            return function(*args, **(kwargs or {}))
        if name not in _ALLOCATIONS:
            with self:  # what is made of simpler operations is watched as those
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            raise NotRecordableError(f"it computes {name} with PyTorch")
        given = dict(kwargs or {})
        like = args[0] if isinstance(args[0], Tensor) else None
        shape = args[1] if name.startswith("new_empty") else (like.shape if like is not None else args[0])
        dtype = given.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
        with _disable_current_modes():
            return self.arena.tensor(shape, dtype)


class Recording:
    """What Library.run writes to while a step is recorded."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, Sequence[float]]] = []

    def add(self, operation: str, arguments: Sequence[float]) -> None:
        """One more operation. A sum and the norm of it become one."""
        if operation == "rms_norm" and self.operations and self.operations[-1][0] == "add":
            rows, x, y, total, width, scale, kind = self.operations[-1][1]
            if [*arguments[:2], arguments[4], arguments[6], scale] == [rows, total, width, kind, 1.0]:
                weight, normed, eps = arguments[2], arguments[3], arguments[5]
                self.operations[-1] = ("add_norm", (rows, x, y, total, weight, normed, width, eps, kind))
                return
        self.operations.append((operation, arguments))


class Program:
    """A recorded step."""

    def __init__(self, library: Library, recording: Recording, rows: int, result: Tensor, arena: _Arena) -> None:
        self._library, self._rows, self._result, self._arena = library, rows, result, arena
        self._program, self._count = library.program(recording.operations), len(recording.operations)

    def run(self, rows: int) -> Tensor:
        """Compute the first `rows` rows. The result is overwritten by the next run."""
        self._library.run_program(self._program, self._count, self._rows, rows)
        return self._result[:rows]


def record(library: Library, function: Callable[[], Tensor], rows: int) -> Program:
    """The operations of `function`, which works on buffers of `rows` rows.

    Raises NotRecordableError where it computes with something else than the core.
    """
    recording, arena = Recording(), _Arena()
    library.recording = recording
    try:
        with _Watch(arena):
            result = function()
    finally:
        library.recording = None
    return Program(library, recording, rows, result, arena)


@contextmanager
def outside(library: Library) -> Iterator[None]:
    """Compute as usual in the midst of a recording: what is recorded reads the result's memory."""
    recording, library.recording = library.recording, None
    try:
        with _disable_current_modes():
            yield
    finally:
        library.recording = recording
