"""A step's operations, recorded once and run again as one call: what a Python call each would cost is saved.

A recording is made by running the model on buffers of a fixed number of rows: operations of the core are written down,
and memory comes from an arena that stays. What PyTorch computes among them (a router's choice, an activation of one
model's own) is written down too, and called again for all rows, those that nobody asked for included. An operation
whose result decides what comes next ends the attempt.
"""

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from octavo.ops.native.library import Arguments, Library, Steps
from octavo.ops.recordable import NotRecordableError

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
_UNRECORDABLE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)


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
        return torch.frombuffer(buffer, dtype=dtype, count=max(1, count))[:count].view(tuple(shape))


class _Call(NamedTuple):
    """An operation of PyTorch's."""

    name: str
    run: Callable[[], object]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes allocations from the arena, lets views pass, and writes down what computes."""

    def __init__(self, arena: _Arena, recording: "Recording") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena, self.recording = arena, recording

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
            return result if result is not NotImplemented else self._computed(function, args, kwargs or {})
        given = dict(kwargs or {})
        like = args[0] if isinstance(args[0], Tensor) else None
        shape = args[1] if name.startswith("new_empty") else (like.shape if like is not None else args[0])
        dtype = given.get("dtype") or (like.dtype if like is not None else torch.get_default_dtype())
        with _disable_current_modes():
            return self.arena.tensor(shape, dtype)

    def _computed(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation of PyTorch's own: its results are copied to where what follows finds them."""
        name = function.overloadpacket.__name__
        if any(tag in function.tags for tag in _UNRECORDABLE):
            raise NotRecordableError(f"what follows depends on the values of {name}")
        if function._schema.is_mutable:
            written = [a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments]
            if written.index(True) != 0 or sum(written) > 1:
                raise NotRecordableError(f"{name} writes to more than its first operand")
            # Not now: what it writes to may be a state, and what it is given are no values of a model.
            self.recording.operations.append(_Call(name, lambda: function(*args, **kwargs)))
            return args[0]
        with _disable_current_modes():
            try:
                result = function(*args, **kwargs)
            except (RuntimeError, IndexError) as error:
                raise NotRecordableError(f"{name}: {error}") from error
            several = isinstance(result, (tuple, list))
            kept = [self.arena.tensor(t.shape, t.dtype).copy_(t) for t in (result if several else (result,))]

        def compute() -> None:
            again = function(*args, **kwargs)
            for target, value in zip(kept, again if several else (again,), strict=True):
                target.copy_(value)

        self.recording.operations.append(_Call(name, compute))
        return type(result)(kept) if several else kept[0]


class Recording:
    """What a step's operations are written down in."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, Arguments] | _Call] = []
        """The core's, by their names and arguments, and PyTorch's."""

    def add(self, operation: str, arguments: Arguments) -> None:
        """One more operation. A sum and the norm of it become one."""
        before = self.operations[-1] if self.operations else None
        if operation == "rms_norm" and before is not None and before[0] == "add" and not isinstance(before, _Call):
            added, alike = before[1], ("rows", "columns", "dtype")
            if (
                added["out"] == arguments["x"]
                and added["scale"] == 1.0
                and all(added[n] == arguments[n] for n in alike)
            ):
                both = arguments | {"x": added["x"], "y": added["y"], "total": added["out"]}
                self.operations[-1] = ("add_rms_norm", both)
                return
        self.operations.append((operation, arguments))


class Program:
    """A recorded step: runs of the core's operations, and what PyTorch computes between them."""

    def __init__(
        self, library: Library, recording: Recording, rows: int, results: tuple[Tensor, ...], arena: _Arena
    ) -> None:
        self._library, self._rows, self._results, self._arena = library, rows, results, arena
        self._parts: list[Steps | _Call] = []
        native: list[tuple[str, Arguments]] = []
        for operation in (*recording.operations, None):
            if operation is not None and not isinstance(operation, _Call):
                native.append(operation)
                continue
            if native:
                self._parts.append(library.steps(native))
                native = []
            if operation is not None:
                self._parts.append(operation)
        self.torch_calls = [part.name for part in self._parts if isinstance(part, _Call)]
        """What PyTorch computes between the core's operations, for all rows that were recorded."""

    def run(self, rows: int) -> tuple[Tensor, ...]:
        """Compute the first `rows` rows. The results are overwritten by the next run."""
        for part in self._parts:
            if isinstance(part, Steps):
                self._library.run(part, self._rows, rows)
            else:
                part.run()
        return tuple(result[:rows] for result in self._results)


def record(library: Library, function: Callable[[], tuple[Tensor, ...]], rows: int) -> Program:
    """The operations of `function`, which works on buffers of `rows` rows.

    Raises NotRecordableError where its operations depend on values.
    """
    recording, arena = Recording(), _Arena()
    with library.recorded(recording.add), _Watch(arena, recording):
        results = function()
    return Program(library, recording, rows, results, arena)
