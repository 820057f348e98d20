"""Copies of packed weights: a later start maps them, where this one had to lay every weight out anew.

A copy is a file in the cache folder: a line, the header's size and digest, the header, which is JSON (what it was made
of, and where each weight lies), and the packed weights. It is for one state of the model's files, of what is asked of
them, and of the code; any other has another name. It is written beside its place and moved there when it is whole. Each
weight's sum is looked at before it is used: what is damaged is packed again, and written anew.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from octavo.architectures import Architecture
from octavo.config import EngineArgs
from octavo.loading.checkpoint import Checkpoint
from octavo.loading.formats import JoinedWeights
from octavo.loading.model_files import cache_folder
from octavo.loading.precision import Precision
from octavo.ops import Backend, PackedLinear, PackedRows, host_memory
from octavo.ops.weight_kinds import WeightKind
from octavo.sizes import format_size, parse_size
from octavo.version import __version__

log = logging.getLogger("octavo")

MAGIC = b"octavo packed weights, 1\n"
ENDING, PARTIAL = ".packed", ".partial"
ALIGNMENT = 4096
SMALLEST = 32 << 20
"""Bytes of weights from which a copy is worth its file."""
HEAD = 1 << 16
"""Bytes of each of the model's files that are looked at, beside what the system says of it."""
MAX_HEADER = 64 << 20
ABANDONED = 3600.0
"""Seconds after which a file that is being written is taken for one whose process has ended."""
SIZE, VARIABLE = "8GiB", "OCTAVO_PACKED_CACHE"
CODE = ("architectures", "loading", "ops", "parts")
"""Packages that decide what is packed."""

Packed = Mapping[str, tuple[PackedLinear, int]]
"""Weights by path, and the bytes that each takes as it is stored."""


class PackedCopy:
    """The copy of one model's packed weights: what there is of it, and where it will be.

    Args:
        folder: where copies are.
        key: what the weights depend on.
        backend: what has packed them, and computes with them.
        limit: bytes that all copies may take together.
    """

    def __init__(self, folder: Path, key: str, backend: Backend, limit: int) -> None:
        self.path = folder / (hashlib.blake2b(key.encode(), digest_size=16).hexdigest() + ENDING)
        self._key, self._backend, self._limit = key, backend, limit
        self._found = self._read()
        if self._found:
            log.info("packed weights are mapped from %s (packed_cache=0: they are packed anew)", self.path)

    def take(self, path: str, shape: tuple[int, ...]) -> tuple[PackedLinear, int] | None:
        """The weight of that path and shape, if the copy has it, and its bytes as it is stored."""
        if path not in self._found:
            return None
        rows, size = self._found[path]
        if (sum(part.outputs for part in rows), rows[0].width) != shape:
            return None
        return self._backend.packed_linear(rows), size

    def keep(self, packed: Packed) -> threading.Thread | None:
        """Write a copy where there is none, on a thread, which a process that ends waits for."""
        rows = {path: (self._backend.packed_rows(weight), size) for path, (weight, size) in sorted(packed.items())}
        kept = {path: (parts, size) for path, (parts, size) in rows.items() if parts}
        total = sum(part.data.nbytes for parts, _ in kept.values() for part in parts)
        if self._found or not SMALLEST <= total <= self._limit:
            return None
        thread = threading.Thread(target=self._write, args=(kept, total), name="octavo-packed-copy")
        thread.start()
        return thread

    def _read(self) -> dict[str, tuple[list[PackedRows], int]]:
        """What the file has; nothing where there is none, and where it is another's, or damaged."""
        try:
            with open(self.path, "rb") as file:
                header, data = _opened(file, self._key)
                found = _weights(header, data)
                host_memory.count_mapped(data)
            os.utime(self.path)  # the oldest go first
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            log.warning("%s is not used: %s. It is written anew.", self.path, error or type(error).__name__)
            return {}
        return found

    def _write(self, weights: Mapping[str, tuple[list[PackedRows], int]], total: int) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_room(folder, self._limit - total, keep=self.path)
            if shutil.disk_usage(folder).free < 2 * total:
                log.info("packed weights are not kept: %s is nearly full", folder)
                return
            written = tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL, delete=False)  # noqa: SIM115
            try:
                with written as file:
                    _write_all(file, self._key, weights)
                os.replace(written.name, self.path)
            except BaseException:
                os.unlink(written.name)
                raise
        except OSError as error:
            log.info("packed weights are not kept in %s: %s", folder, error)
            return
        log.info("packed weights, %s, are kept in %s for the next start", format_size(total), self.path)


def copies_folder() -> Path:
    """Where all copies are."""
    return cache_folder() / "packed"


def copies_limit(args: EngineArgs | None = None) -> int:
    """Bytes that all copies may take together; 0 for none. Raises ConfigError for a size that is none."""
    if args is not None and args.packed_cache is not None:
        return parse_size(args.packed_cache, "packed_cache", zero=True)
    return parse_size(os.environ.get(VARIABLE) or SIZE, VARIABLE, zero=True)


def packed_copy(
    args: EngineArgs, checkpoint: Checkpoint, task: str, precision: Precision, backend: Backend
) -> PackedCopy | None:
    """The copy of a checkpoint's packed weights; None where copies are switched off, or there can be none.

    Raises ConfigError for a size that is none.
    """
    limit = copies_limit(args)
    known = checkpoint.architecture.home.startswith(f"{Architecture.__module__.rpartition('.')[0]}.")
    if not limit or not backend.packed_layout or isinstance(checkpoint.weights, JoinedWeights) or not known:
        return None  # of a plugin's architectures, nothing here tells when their code has changed
    try:
        key = {
            "files": [_file_state(path) for path in _files(checkpoint)],
            "config": hashlib.blake2b(_text(checkpoint.config.values).encode()).hexdigest(),
            "asked": [task, args.load_format, repr(precision), type(checkpoint.weights).__name__, _has_predictor(args)],
            "octavo": [__version__, backend.packed_layout, *_code_state()],
        }
        return PackedCopy(copies_folder(), _text(key), backend, limit)
    except (OSError, RuntimeError) as error:  # no home folder
        log.info("packed weights are not kept: %s", error)
        return None


def _has_predictor(args: EngineArgs) -> bool:
    """Whether the model's weights are more than those of its layers."""
    return args.speculation is not None and args.speculation.method == "mtp"


def make_room(folder: Path, left: int, keep: Path | None = None) -> None:
    """Delete copies, first those that were not used for longest, until all others take at most `left` bytes."""
    found = list[tuple[float, int, Path]]()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            if path.suffix == PARTIAL and state.st_mtime < time.time() - ABANDONED:
                path.unlink()
            elif path.suffix == ENDING and path != keep:
                found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= left:
            break
        path.unlink(missing_ok=True)
        total -= size


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=repr)


def _files(checkpoint: Checkpoint) -> list[Path]:
    """All that the weights are read from."""
    if checkpoint.gguf is not None:
        towers = checkpoint.mmproj.file.paths if checkpoint.mmproj is not None else []
        return [*checkpoint.gguf.paths, *towers]
    return sorted(path for path in checkpoint.files.path.iterdir() if path.is_file())


def _file_state(path: Path) -> list[Any]:
    """What tells a file from others, and from what it was before."""
    with open(path, "rb") as file:
        state, head = os.fstat(file.fileno()), hashlib.blake2b(file.read(HEAD)).hexdigest()
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, head]


def _code_state() -> list[int]:
    """What changes with the code, for those who work on it: a version's number stays the same."""
    root = Path(__file__).parents[1]
    states = [path.stat() for package in CODE for path in (root / package).rglob("*.py")]
    return [len(states), sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def _opened(file: IO[bytes], key: str) -> tuple[dict[str, Any], mmap.mmap]:
    """A copy's header and its bytes. Raises ValueError or OSError for what is no sound copy of that key."""
    state = os.fstat(file.fileno())
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise ValueError("others may have written it")
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as a copy does")
    size, digest = int.from_bytes(file.read(8), "little"), file.read(32)
    text = file.read(size) if size <= MAX_HEADER else b""
    if hashlib.blake2b(text, digest_size=32).digest() != digest:
        raise ValueError("its header is damaged")
    header: dict[str, Any] = json.loads(text)
    if header["key"] != key or header["bytes"] != state.st_size:
        raise ValueError("it is cut short, or of something else")
    return header, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _weights(header: Mapping[str, Any], data: mmap.mmap) -> dict[str, tuple[list[PackedRows], int]]:
    """The weights of a copy, whose sums are right. Raises ValueError where one is not."""
    listed = [part for parts, _ in header["weights"].values() for part in parts]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # which takes the pages, too
        sums = pool.map(lambda part: _sum(np.frombuffer(data, np.uint8, part[4], part[3])), listed)
        if any(found != part[5] for found, part in zip(sums, listed, strict=True)):
            raise ValueError("a weight in it is damaged")

    def rows(part: list[Any]) -> PackedRows:
        kind, outputs, width, offset, size, _, fine = part
        tensor = torch.frombuffer(data, dtype=torch.uint8, count=size, offset=offset)
        return PackedRows(WeightKind(kind), outputs, width, tensor, fine)

    return {path: ([rows(part) for part in parts], size) for path, (parts, size) in header["weights"].items()}


def _sum(values: "np.ndarray[Any, Any]") -> int:
    """Of the bytes, eight at a time."""
    whole = len(values) // 8 * 8
    return (int(values[:whole].view(np.uint64).sum(dtype=np.uint64)) + int(values[whole:].sum(dtype=np.uint64))) % 2**64


def _write_all(file: IO[bytes], key: str, weights: Mapping[str, tuple[Iterable[PackedRows], int]]) -> None:
    """A whole copy. The header's size is known before offsets are, which are from the file's beginning."""
    listed, at = dict[str, Any](), 0
    for path, (parts, size) in weights.items():
        rows = list[list[Any]]()
        for part in parts:
            rows.append(
                [int(part.kind), part.outputs, part.width, at, part.data.nbytes, _sum(part.data.numpy()), part.fine]
            )
            at += -(-part.data.nbytes // ALIGNMENT) * ALIGNMENT
        listed[path] = (rows, size)
    # Numbers grow by what goes before them: so much room is left that it fits in any case.
    room = len(_text({"key": key, "bytes": at, "weights": listed})) + 24 * (1 + sum(len(r) for r, _ in listed.values()))
    first = -(-(len(MAGIC) + 40 + room) // ALIGNMENT) * ALIGNMENT
    for rows, _ in listed.values():
        for row in rows:
            row[3] += first
    header = _text({"key": key, "bytes": first + at, "weights": listed}).encode()
    file.write(MAGIC + len(header).to_bytes(8, "little") + hashlib.blake2b(header, digest_size=32).digest() + header)
    for path, (parts, _) in weights.items():
        for part, row in zip(parts, listed[path][0], strict=True):
            file.write(bytes(row[3] - file.tell()))
            file.write(part.data.numpy().data)
    file.write(bytes(first + at - file.tell()))
