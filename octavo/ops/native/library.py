"""The compiled core: which of its libraries this processor runs, and its functions, called through ctypes.

Every operation takes one array of 8-byte arguments, of which the first is the number of rows. So a step's operations
can be recorded, and run again as one call with another number of rows (octavo.ops.native.recording).
"""

import ctypes
import functools
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Protocol

from octavo.ops.native.threads import default_threads

log = logging.getLogger("octavo")

IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
X86_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx")
INSTRUCTIONS = ("base", "dotprod") if IS_ARM else ("base", *X86_INSTRUCTIONS)
"""The libraries of this architecture, by the instruction set that they need, the best last."""

_ARGUMENTS = {
    "activate": "7q",
    "add": "5qdq",
    "add_norm": "7qdq",
    "angles": "7qddq",
    "attention": "13qdd9q",
    "causal_conv": "13q",
    "choose": "6q",
    "copy_rows": "5q",
    "expert_linear": "14q",
    "layer_norm": "6qdq",
    "linear": "14q",
    "pack": "5q",
    "poison": "5q",
    "quantize": "6q",
    "rms_norm": "5qdq",
    "rotate_store": "17q",
    "selective_scan": "19q",
    "store_rows": "8q",
    "table_rows": "5q",
    "weight_rows": "7qd",
    "weighted_sum": "7q",
    "widen": "5q",
}
"""Arguments of each operation, as struct spells them: whole numbers and pointers (q), floats (d)."""
pack_header = Struct("<qq").pack
_FUNCTIONS = ("set_threads", "packed_bytes", "row_bytes", "run")


def _path(name: str) -> Path | None:
    folder = Path(os.environ.get("OCTAVO_CORE") or Path(__file__).parent)  # another build of it, for its developers
    return next(iter(sorted(folder.glob(f"{name}.*"))), None)


def built() -> tuple[str, ...]:
    """The libraries that are there, the best last."""
    return tuple(name for name in INSTRUCTIONS if _path(f"_core_{name}") is not None)


@functools.cache
def runnable() -> tuple[str, ...]:
    """The libraries that are there and that this processor runs, the best first."""
    processor = _path("_core_processor")
    if processor is None:
        return ()
    has = 1 | int(ctypes.CDLL(str(processor)).octavo_instructions()) << 1  # a bit for each of INSTRUCTIONS
    return tuple(name for name in reversed(built()) if has >> INSTRUCTIONS.index(name) & 1)


class Recorder(Protocol):
    """What takes operations in, in place of running them."""

    def add(self, operation: str, arguments: Sequence[float]) -> None: ...


class Library:
    """One of the compiled libraries. Operations are called by `run`, which a Recorder may take in instead."""

    def __init__(self, name: str) -> None:
        path = _path(f"_core_{name}")
        if path is None:
            raise OSError(f"octavo was installed without its library for {name}")
        self.name = name
        library = ctypes.CDLL(str(path))
        self._operations = {}
        for operation, arguments in _ARGUMENTS.items():
            function = getattr(library, f"octavo_{operation}")
            function.argtypes, function.restype = [ctypes.c_char_p], None
            address = ctypes.cast(function, ctypes.c_void_p).value or 0
            self._operations[operation] = (Struct(f"<{arguments}").pack, function, address)
        for name in _FUNCTIONS:
            getattr(library, f"octavo_{name}").restype = ctypes.c_int64
        library.octavo_run.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3]
        self._library = library
        self.recording: Recorder | None = None
        self.threads = self.set_threads(default_threads())

    def run(self, operation: str, *arguments: float | None) -> None:
        """Compute. None is a null pointer."""
        if self.recording is not None:
            self.recording.add(operation, [0 if a is None else a for a in arguments])
            return
        pack, function, _ = self._operations[operation]
        function(pack(*[0 if a is None else a for a in arguments]))

    def program(self, operations: Sequence[tuple[str, Sequence[float]]]) -> bytes:
        """Recorded operations as `run_program` takes them: of each its function, how many arguments, and these."""
        program = bytearray()
        for operation, arguments in operations:
            pack, _, address = self._operations[operation]
            program += pack_header(address, len(arguments)) + pack(*arguments)
        return bytes(program)

    def run_program(self, program: bytes, operations: int, recorded_rows: int, rows: int) -> None:
        """Run recorded operations again, for `rows` rows."""
        self._library.octavo_run(program, operations, recorded_rows, rows)

    def set_threads(self, count: int) -> int:
        """Compute with so many threads from now on. Returns how many the system gave."""
        self.threads = int(self._library.octavo_set_threads(ctypes.c_int64(count)))
        return self.threads

    def packed_bytes(self, kind: int, rows: int, width: int) -> int:
        """Memory of a packed weight."""
        return int(self._library.octavo_packed_bytes(*map(ctypes.c_int64, (kind, rows, width))))

    def row_bytes(self, kind: int, width: int) -> int:
        """Bytes of a row of a weight before it is packed."""
        return int(self._library.octavo_row_bytes(*map(ctypes.c_int64, (kind, width))))
