"""The tensors of a checkpoint folder: safetensors or PyTorch files, sharded or not."""

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.loading.files import read_json
from octavo.ops import StoredRows

REOPEN_AFTER = 32 << 20
"""Bytes read through one memory map before it is dropped, so that pages already used do not count as ours."""


class TensorSource(Protocol):
    """A stored tensor, read when wanted."""

    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, in the dtype in which it is stored."""
        ...

    def copy_to(self, target: Tensor) -> None:
        """Fill `target` of the same shape, whatever its dtype and device."""
        ...


class PlainSource:
    """A tensor that is already there."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def read(self) -> Tensor:
        return self.tensor

    def copy_to(self, target: Tensor) -> None:
        target.copy_(self.tensor)


class ChangedSource:
    """A tensor that is changed as it is read."""

    def __init__(self, source: TensorSource, change: Callable[[Tensor], Tensor]) -> None:
        self.source, self.change = source, change
        self.shape = tuple(change(torch.empty(source.shape, device="meta")).shape)

    def read(self) -> Tensor:
        return self.change(self.source.read())

    def copy_to(self, target: Tensor) -> None:
        target.copy_(self.read())

    def stored(self) -> StoredRows | None:
        rows = stored_rows(self.source)
        order = None if rows is None else row_order(self.change, self.source.shape)
        if rows is None or order is None:
            return None
        return StoredRows(rows.kind, rows.width, rows.data[order])


def stored_rows(source: TensorSource) -> StoredRows | None:
    """A weight's rows as its file has them, where they are of a kind that is computed with as it is."""
    stored = getattr(source, "stored", None)
    return None if stored is None else stored()


def row_order(change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Which row each row of a changed `[rows, width]` tensor was, where the change does no more than move rows."""
    if len(shape) != 2:
        return None
    rows = shape[0]
    tagged = torch.stack([torch.arange(rows), torch.arange(rows) + rows], dim=1)  # two columns that tell their rows
    try:
        moved = change(tagged)
    except (RuntimeError, TypeError):
        return None
    if moved.dim() != 2 or moved.shape[1] != 2 or moved.dtype != tagged.dtype:
        return None
    order = moved[:, 0]
    sound = (moved[:, 1] - order == rows) & (order >= 0) & (order < rows)
    return order if bool(sound.all()) else None


NamedSources = Iterator[tuple[str, TensorSource]]


def checkpoint_tensors(folder: Path, load_format: str = "auto") -> NamedSources:
    """Name and source of every tensor in the folder's weight files.

    Raises CheckpointError for missing shards, damaged files, and pickles that hold code.
    """
    kinds = {
        "auto": (("safetensors", _safetensors), ("bin", _pickled)),
        "safetensors": (("safetensors", _safetensors),),
        "pt": (("bin", _pickled), ("pt", _pickled)),
    }[load_format if load_format in ("safetensors", "pt") else "auto"]
    for suffix, read in kinds:
        files = _weight_files(folder, suffix)
        if files:
            for file in files:
                yield from read(file)
            return
    raise CheckpointError(
        f"{folder} has a config.json but no weights ({' or '.join('*.' + k for k, _ in kinds)}). "
        "Download the whole model, or point to the folder that holds its weights."
    )


def _weight_files(folder: Path, suffix: str) -> list[Path]:
    """The files that the folder's index names, or all of the kind."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{suffix}.index.json"
    if not index.is_file():
        return sorted(
            f
            for f in folder.glob(f"*.{suffix}")
            if not f.name.startswith(("consolidated", "training_args", "optimizer", "scheduler"))
        )
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is not a file in its own folder; it is refused.")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files that {index.name} names: "
            f"{', '.join(missing[:4])}. Download them."
        )
    return [folder / n for n in names]


class _SafetensorsFile:
    """Reads tensors through a memory map that is renewed now and then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self.handle: Any = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged or cut short ({error}). Download it again.") from error
        self._read = 0

    def get(self, name: str) -> Tensor:
        with self._lock:
            if self._read > REOPEN_AFTER:
                self._open()
            tensor: Tensor = self.handle.get_tensor(name)
            self._read += tensor.nbytes
            return tensor


class _SafetensorsSource:
    def __init__(self, file: _SafetensorsFile, name: str) -> None:
        self.file, self.name = file, name
        self.shape = tuple(file.handle.get_slice(name).get_shape())

    def read(self) -> Tensor:
        return self.file.get(self.name)

    def copy_to(self, target: Tensor) -> None:
        target.copy_(self.read())


def _safetensors(path: Path) -> NamedSources:
    file = _SafetensorsFile(path)
    for name in list(file.handle.keys()):
        yield name, _SafetensorsSource(file, name)


def _pickled(path: Path) -> NamedSources:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors (pickled Python code), and is refused. Convert it to safetensors in a "
            "place you trust."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}). Download it again.") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors.")
    for name in list(state):
        tensor = state.pop(name)
        if isinstance(tensor, Tensor):
            yield name, PlainSource(tensor)


def _is_zip(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(2) == b"PK"
    return False
