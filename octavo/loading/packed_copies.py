"""Copies of packed weights: a later start maps them, where this one had to lay every weight out anew.

A copy is a file in the cache folder (`packed_file.py`), for one state of the model's files, of what is asked of them,
and of the code; any other has another name. It is written beside its place and moved there when it is whole. Each
weight's sum is looked at before it is used: what is damaged is packed again, and written anew. Weights that stay on
disk (`placement.py`) are written as they are packed, and computed with where the file is mapped.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.loading.checkpoint import Checkpoint
from octavo.loading.formats import JoinedWeights, PlainWeights
from octavo.loading.formats.plain import weight_files
from octavo.loading.model_files import cache_folder
from octavo.loading.model_state import as_text, code_state, config_state, files_state, is_known, weights_files
from octavo.loading.packed_file import PARTIAL, PackedFile, Weights, read_packed
from octavo.loading.placement import Placement, WeightSize, check_room, choose_placement, wanted_bytes
from octavo.loading.precision import Precision
from octavo.ops import Backend, PackedLinear, host_memory
from octavo.ops.host_memory import Arena
from octavo.sizes import format_size, parse_size
from octavo.version import __version__

log = logging.getLogger("octavo")

ENDING, ON_DISK = ".packed", ".on-disk"
"""Of copies of weights that memory holds, and of those that stay on disk."""
SMALLEST = 32 << 20
"""Bytes of weights from which a copy is worth its file."""
SPARE = 0.02
"""Of what weights on disk are taken to need, that they may need beyond."""
ABANDONED = 3600.0
"""Seconds after which a file that is being written is taken for one whose process has ended."""
SIZE, VARIABLE = "8GiB", "OCTAVO_PACKED_CACHE"


@dataclass(frozen=True)
class CopyName:
    """What a copy is called, and what its weights depend on."""

    key: str
    model: str
    """Of the model and what is asked of it, whatever state its files are in."""

    @property
    def path(self) -> Path:
        """Where a copy is."""
        return copies_folder() / (_digest(self.key) + ENDING)

    @property
    def on_disk(self) -> Path:
        """Where one is whose weights stay there."""
        return copies_folder() / f"{self.model}-{_digest(self.key)}{ON_DISK}"


class PackedCopy:
    """The copy of one model's packed weights: what there is of it, where it will be, and what stays there.

    Args:
        name: what tells the copy from others; None where none is to be kept.
        args: the engine's options.
        precision: of the weights.
        backend: what has packed them, and computes with them.
        stored: bytes of the checkpoint's files.
        limit: bytes that all copies may take together.
    """

    def __init__(
        self, name: CopyName | None, args: EngineArgs, precision: Precision, backend: Backend, stored: int, limit: int
    ) -> None:
        self._name, self._args, self._precision, self._backend = name, args, precision, backend
        self._stored, self._limit, self._placement = stored, limit, Placement()
        self._found, self._memory = Weights(), Arena()
        self._packed = dict[str, tuple[PackedLinear, int]]()
        self._file: PackedFile | None = None
        """What weights that stay on disk are written to."""

    def open(self, sizes: Sequence[WeightSize]) -> None:
        """Decide what stays on disk of weights of these sizes, and look for a copy that an earlier start has kept.

        Raises ConfigError for weights that have no room.
        """
        args, ranks = self._args, self._backend.place.size
        free = self._backend.free_memory() // ranks
        folder = None
        with contextlib.suppress(RuntimeError):  # no home folder
            folder = copies_folder() if sys.platform != "win32" else None
        self._placement = choose_placement(args, sizes, self._precision, self._stored, free, folder)
        shares = {size.path: size.share for size in sizes}
        if self._name is not None:
            kept = [self._name.on_disk, self._name.path] if self._is_on_disk else [self._name.path, self._name.on_disk]
            self._found = next(filter(None, (self._read(path, shares) for path in kept)), {})
        if self._is_on_disk and not self._found:
            wanted = wanted_bytes(sizes, self._precision, self._stored)
            self._begin(int(wanted * (1 + SPARE)))

    @property
    def _is_on_disk(self) -> bool:
        return self._placement.experts or self._placement.others

    def on_disk(self, share: float) -> bool:
        """Whether a weight stays on disk that such a share of the tokens meets."""
        return self._file is not None and self._placement.on_disk(share)

    def take(self, path: str, shape: tuple[int, ...], is_gated: bool = False) -> tuple[PackedLinear, int] | None:
        """The weight of that path and shape, if the copy has it, and its bytes as it is stored.

        It is the mapped file's, but on several NUMA nodes: there the system's pages are where some process has read
        them first, and it is copied beside the threads. `is_gated`: as of the backend's `beside_threads`.
        """
        if path not in self._found:
            return None
        rows, size = self._found[path]
        if (sum(part.outputs for part in rows), rows[0].width) != shape:
            return None
        weight = self._backend.packed_linear(rows)
        placed = self._backend.beside_threads(weight, is_gated)
        if placed is weight and self._is_on_disk:
            rows = [part if part.on_disk else replace(part, data=self._held(part.data)) for part in rows]
            placed = self._backend.packed_linear(rows)
        return placed, size

    def _held(self, data: Tensor) -> Tensor:
        """In memory, from which what is read of the experts cannot drive it out."""
        return self._memory.bytes(data.nbytes).copy_(data)

    def put(self, path: str, weight: PackedLinear, size: int, share: float) -> PackedLinear:
        """Take a weight that was packed. Returns it as it is to be computed with: in the file, if it stays on disk.

        Raises ConfigError where it cannot be written.
        """
        if self._file is None:
            if self._name is not None and not self._found:
                self._packed[path] = weight, size
            return weight
        try:
            rows = self._file.put(path, self._backend.packed_rows(weight), size)
        except OSError as error:
            raise _unwritten(error) from error
        return self._backend.packed_linear(rows) if self._placement.on_disk(share) else weight

    def keep(self) -> threading.Thread | None:
        """Keep what was packed for the next start: written on a thread, which a process that ends waits for."""
        if self._file is not None:
            self._keep_on_disk(self._file)
            return None
        packed, self._packed = self._packed, {}
        rows = {path: (self._backend.packed_rows(weight), size) for path, (weight, size) in sorted(packed.items())}
        total = sum(part.data.nbytes for parts, _ in rows.values() for part in parts)
        if self._name is None or not rows or not SMALLEST <= total <= self._limit:
            return None
        args = (self._name, rows, total)
        thread = threading.Thread(target=self._write, args=args, name="octavo-packed-copy")
        thread.start()
        return thread

    def give_up(self) -> None:
        """Nothing of what was packed is wanted."""
        if self._file is not None:
            self._file.remove()

    def _begin(self, wanted: int) -> None:
        """Begin a file for weights that stay on disk. Raises ConfigError where there is no room for it."""
        folder = copies_folder()
        if folder.is_dir():
            remove_abandoned(folder)
        if self._name is not None:  # those of other states of the same files are of no use
            for path in folder.glob(f"{self._name.model}-*{ON_DISK}"):
                path.unlink(missing_ok=True)
        check_room(folder, wanted, self._args.model)
        try:
            self._file = PackedFile(folder, is_mapped=True)
        except OSError as error:
            raise _unwritten(error) from error
        if self._name is not None and not self._keeps_on_disk(wanted):
            log.warning(
                "packed_cache=%s keeps no %s: the weights are laid out on disk at each start",
                format_size(self._limit),
                format_size(wanted),
            )

    def _keeps_on_disk(self, size: int) -> bool:
        """Whether weights on disk are kept: within a limit that somebody has set. The default is no limit for them."""
        is_set = self._args.packed_cache is not None or os.environ.get(VARIABLE)
        return self._name is not None and (not is_set or size <= self._limit)

    def _keep_on_disk(self, file: PackedFile) -> None:
        try:
            if self._name is not None and self._keeps_on_disk(file.size):
                file.move(self._name.on_disk, self._name.key)
                log.info("weights on disk, %s, are kept in %s", format_size(file.size), self._name.on_disk)
        except OSError as error:
            log.info("weights on disk are not kept for the next start: %s", error)
        finally:
            file.remove()

    def _read(self, path: Path, shares: Mapping[str, float]) -> Weights:
        """What a file has; nothing where there is none, and where it is another's, or damaged."""
        assert self._name is not None
        try:
            with open(path, "rb") as file:
                left = (name for name, share in shares.items() if self._placement.on_disk(share))
                found, data = read_packed(file, self._name.key, frozenset(left).__contains__)
                if not self._is_on_disk:
                    host_memory.count_mapped(data)
            os.utime(path)  # the oldest go first
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            log.warning("%s is not used: %s. It is written anew.", path, error or type(error).__name__)
            return {}
        log.info("packed weights are mapped from %s (packed_cache=0: they are packed anew)", path)
        return found

    def _write(self, name: CopyName, weights: Weights, total: int) -> None:
        folder = name.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_room(folder, self._limit - total, keep=name.path)
            if shutil.disk_usage(folder).free < 2 * total:
                log.info("packed weights are not kept: %s is nearly full", folder)
                return
            file = PackedFile(folder)
            try:
                for path, (parts, size) in weights.items():
                    file.put(path, parts, size)
                file.move(name.path, name.key)
            finally:
                file.remove()
        except OSError as error:
            log.info("packed weights are not kept in %s: %s", folder, error)
            return
        log.info("packed weights, %s, are kept in %s for the next start", format_size(total), name.path)


def _unwritten(error: OSError) -> ConfigError:
    return ConfigError(
        f"the weights do not fit into memory, and cannot be written to {copies_folder()}: {error}. Set XDG_CACHE_HOME "
        "to a folder that can be written, on a disk that has room."
    )


def copies_folder() -> Path:
    """Where all copies are."""
    return cache_folder() / "packed"


def copies_limit(args: EngineArgs | None = None) -> int:
    """Bytes that all copies may take together; 0 for none. Raises ConfigError for a size that is none."""
    if args is not None and args.packed_cache is not None:
        return parse_size(args.packed_cache, "packed_cache", zero=True)
    return parse_size(os.environ.get(VARIABLE) or SIZE, VARIABLE, zero=True)


def packed_copy(
    args: EngineArgs, checkpoint: Checkpoint, task: str, precision: Precision, backend: Backend, is_own: bool
) -> PackedCopy | None:
    """The copy of a checkpoint's packed weights; None where there can be none.

    Args:
        is_own: the weights are the checkpoint's own, and this rank has all of them.

    Raises ConfigError for a size that is none.
    """
    limit = copies_limit(args)
    if not backend.packed_layout:
        if args.weights_on_disk == "on":
            raise ConfigError("weights_on_disk='on' needs the compiled core on a CPU (see `octavo env`).")
        return None
    is_own = is_own and not isinstance(checkpoint.weights, JoinedWeights) and is_known(checkpoint)
    name = None  # of a plugin's architectures, nothing here tells when their code has changed
    try:
        name = _name(args, checkpoint, task, precision, backend) if is_own and limit else None
    except (OSError, RuntimeError) as error:  # no home folder
        log.info("packed weights are not kept: %s", error)
    stored = _stored_bytes(checkpoint) // backend.place.num_stages
    return PackedCopy(name, args, precision, backend, stored, limit)


def _name(args: EngineArgs, checkpoint: Checkpoint, task: str, precision: Precision, backend: Backend) -> CopyName:
    asked = [task, args.load_format, repr(precision), type(checkpoint.weights).__name__, _has_predictor(args)]
    files = weights_files(checkpoint)
    key = {
        "files": files_state(checkpoint),
        "config": config_state(checkpoint),
        "asked": asked,
        "octavo": [__version__, backend.packed_layout, *code_state()],
    }
    copies_folder()
    return CopyName(as_text(key), _digest(as_text([*map(str, files), *asked])))


def _stored_bytes(checkpoint: Checkpoint) -> int:
    """Of the files whose weights may be held as they are stored."""
    weights = checkpoint.weights
    plain = weight_files(weights.folder, weights.load_format) if isinstance(weights, PlainWeights) else []
    return sum(path.stat().st_size for path in (plain if checkpoint.gguf is None else weights_files(checkpoint)))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _has_predictor(args: EngineArgs) -> bool:
    """Whether the model's weights are more than those of its layers."""
    return args.speculation is not None and args.speculation.method == "mtp"


def make_room(folder: Path, left: int, keep: Path | None = None) -> None:
    """Delete copies, first those that were not used for longest, until all others take at most `left` bytes."""
    remove_abandoned(folder)
    found = list[tuple[float, int, Path]]()
    for path in folder.glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            if path != keep:
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= left:
            break
        path.unlink(missing_ok=True)
        total -= size


def remove_abandoned(folder: Path) -> None:
    """Delete what processes have begun to write that were ended meanwhile."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()
