"""The compiled core: which of its libraries this processor runs, and its functions, called through ctypes.

`Library.core` has them, as description.py says. A step's operations can be recorded, and run again as one call with
another number of rows (octavo.ops.native.recording).
"""

import ctypes
import functools
import itertools
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

from octavo.errors import RankError
from octavo.ops.native.binding import bind, check, fields_of, layout
from octavo.ops.native.description import X86, Arm, Core, ProgramStep
from octavo.ops.native.threads import default_threads, homes, own_nodes

log = logging.getLogger("octavo")

SETS: type[X86] | type[Arm] = Arm if platform.machine().lower() in ("aarch64", "arm64") else X86
INSTRUCTIONS = tuple(of.name.lower() for of in SETS)
"""The libraries of this architecture, by the instruction set that they need, the best last."""

Arguments = dict[str, float | None]
"""An operation's, by their names."""


def _path(name: str) -> Path | None:
    folder = Path(os.environ.get("OCTAVO_CORE") or Path(__file__).parent)  # another build of it, for its developers
    return next(iter(sorted(folder.glob(f"{name}.*"))), None)


def built() -> tuple[str, ...]:
    """The libraries that are there, the best last."""
    return tuple(name for name in INSTRUCTIONS if _path(f"_core_{name}") is not None)


@functools.cache
def runnable() -> tuple[str, ...]:
    """The libraries that are there and that this processor runs, the best first.

    Raises OSError where they were compiled from another description.
    """
    path = _path("_core_processor")
    if path is None:
        return ()
    processor = ctypes.CDLL(str(path))
    check(processor)
    has = int(processor.octavo_instructions())  # a bit for each of SETS
    return tuple(name for name in reversed(built()) if has >> SETS[name.upper()] & 1)


class Steps(NamedTuple):
    """Recorded operations, as the core runs them again."""

    program: ctypes.Array[ctypes.c_char]
    operations: int


class Tiles(NamedTuple):
    """Which products take the processor's tiles, where the library has these (Intel's AMX)."""

    codes: bool
    """Rows with quantized weights: the same bits by vectors."""
    bf16: bool
    """Rows with weights of bfloat16, whose sums have other bits by vectors: ranks decide together."""
    attention: bool
    """Attention in bfloat16, of which the same is true."""

    @property
    def order(self) -> str:
        """Those that change bits; empty for none of them."""
        return " ".join(name for name in ("bf16", "attention") if getattr(self, name))


NO_TILES = Tiles(codes=False, bf16=False, attention=False)


class Library:
    """One of the compiled libraries."""

    core: Core
    """Its functions, called by the names of their arguments; None is a null address."""

    def __init__(self, name: str) -> None:
        path = _path(f"_core_{name}")
        if path is None:
            raise OSError(f"octavo was installed without its library for {name}")
        self.name, self.path = name, path
        self._functions = {bound.signature.name: bound for bound in bind(ctypes.CDLL(str(path)))}
        self.is_recording = False
        self.failure: Callable[[], Exception] | None = None
        """What ranks that have stopped raise."""
        self.core = cast(Core, SimpleNamespace(**{name: bound.call for name, bound in self._functions.items()}))
        self.nodes: tuple[int, ...] = ()
        """The system's numbers of the NUMA nodes that threads are bound to; none where there is one."""
        self._pack_step = layout(fields_of(ProgramStep)).pack
        self.threads = self.set_threads(default_threads())
        self.tiles = self.set_tiles(Tiles(codes=True, bf16=True, attention=True))

    @contextmanager
    def recorded(self, take: Callable[[str, Arguments], None]) -> Iterator[None]:
        """Within it this thread's operations are not run: `take` is called with their names and arguments."""
        core, thread = self.core, threading.get_ident()

        def taken(operation: str, /, **arguments: float | None) -> None:
            if threading.get_ident() == thread:
                take(operation, arguments)
            else:  # an adapter's weights are packed meanwhile
                self._functions[operation].call(**arguments)

        operations = {name: partial(taken, name) for name, of in self._functions.items() if not of.signature.returns}
        self.core = cast(Core, SimpleNamespace(**vars(core) | operations))
        self.is_recording = True
        try:
            yield
        finally:
            self.core, self.is_recording = core, False

    def steps(self, operations: Sequence[tuple[str, Arguments]]) -> Steps:
        """Recorded operations as `run` takes them."""
        program = bytearray()
        for operation, arguments in operations:
            function = self._functions[operation]
            packed = function.pack(**arguments)
            program += self._pack_step(function.address, len(packed)) + packed
        return Steps((ctypes.c_char * len(program)).from_buffer(program), len(operations))

    def run(self, steps: Steps, recorded_rows: int, rows: int) -> None:
        """Run recorded operations again, for `rows` rows. Raises RankError where ranks stop."""
        address = ctypes.addressof(steps.program)
        status = self.core.run(program=address, steps=steps.operations, recorded_rows=recorded_rows, rows=rows)
        if status > 0:
            raise RankError("the step was stopped.") if self.failure is None else self.failure()

    def set_tiles(self, tiles: Tiles) -> Tiles:
        """Take tiles for these products from now on, in all of this process. Returns which that are."""
        has_tiles = bool(self.core.set_tiles(codes=tiles.codes, bf16=tiles.bf16, attention=tiles.attention))
        self.tiles = tiles if has_tiles else NO_TILES
        return self.tiles

    def set_threads(self, count: int, nodes: Mapping[int, Sequence[int]] | None = None) -> int:
        """Compute with so many threads from now on. Returns how many the system gave.

        Of several NUMA nodes, each thread is bound to one.

        Args:
            count: how many.
            nodes: their processors; None for what the system says.
        """
        nodes = own_nodes() if nodes is None else nodes
        by_thread = homes(count, nodes) if len(nodes) > 1 else []
        if len(set(by_thread)) < 2:
            self.nodes = ()
            self.threads = self.core.set_threads(count=count, num_nodes=1, homes=None, processors=None, ends=None)
            return self.threads
        places = {node: place for place, node in enumerate(nodes)}
        numbers = [
            (ctypes.c_int32 * len(of))(*of)
            for of in (
                [places[node] for node in by_thread],
                list(itertools.chain.from_iterable(nodes.values())),
                list(itertools.accumulate(len(cpus) for cpus in nodes.values())),
            )
        ]
        own, processors, ends = map(ctypes.addressof, numbers)
        self.threads = self.core.set_threads(
            count=count, num_nodes=len(nodes), homes=own, processors=processors, ends=ends
        )
        if self.nodes != tuple(nodes):
            log.info("%d threads are bound to %d NUMA nodes", self.threads, len(nodes))
        self.nodes = tuple(nodes)
        return self.threads
