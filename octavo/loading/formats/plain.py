"""Folders whose weights are floats, a tensor each: safetensors or PyTorch files, sharded or not."""

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.files import open_file, read_json
from octavo.loading.formats.weight_format import WeightFormat
from octavo.loading.model_files import NATIVE
from octavo.loading.pickled import pickled_tensors
from octavo.loading.tensor_source import TensorSource, cut
from octavo.parts import Names
from octavo.parts.weight_slots import Shard

HEADER_MAX = 32 << 20
"""Bytes of a safetensors file's header: some 200,000 tensors."""
INDEX_MAX = 64 << 20
"""Bytes of an index, which names every tensor of a model."""
REOPEN_AFTER = 32 << 20
"""Bytes read through one memory map before it is dropped, so that pages already used do not count as ours."""


NamedTensors = Iterator[tuple[str, TensorSource]]


class PlainWeights(WeightFormat):
    """The weights of a folder.

    Args:
        folder: where the files are.
        load_format: which of them to read: auto, safetensors, pt, or mistral (consolidated*.safetensors).
    """

    name = "plain"

    def __init__(self, folder: Path, load_format: str) -> None:
        self.folder, self.load_format = folder, load_format

    def tensors(self, names: Names) -> NamedTensors:
        return folder_tensors(self.folder, self.load_format)


def folder_tensors(folder: Path, load_format: str = "auto") -> NamedTensors:
    """Name and source of every tensor in the folder's weight files.

    Raises CheckpointError for missing shards, damaged files, pickles that hold code, and a name that is there twice.
    """
    seen: dict[str, str] = {}
    for file in weight_files(folder, load_format):
        read = safetensors_tensors if file.suffix == ".safetensors" else pickled_tensors
        for name, source in read(file):
            if name in seen:
                raise CheckpointError(
                    f"{folder} has {shorten(name)} twice, in {seen[name]} and in {file.name}. Leave only the "
                    "files of one download."
                )
            seen[name] = file.name
            yield name, source


def weight_files(folder: Path, load_format: str = "auto") -> list[Path]:
    """The files of the first kind that the folder has, of those that `load_format` names.

    Raises CheckpointError where it has none, and for missing shards.
    """
    suffixes = {"safetensors": ("safetensors",), "pt": ("bin", "pt"), "mistral": (NATIVE,)}.get(
        load_format, ("safetensors", "bin")
    )
    for suffix in suffixes:
        if files := _weight_files(folder, suffix):
            return files
    raise CheckpointError(
        f"{folder} has a config but no weights ({' or '.join(k if k == NATIVE else '*.' + k for k in suffixes)}). "
        "Download the whole model, or point to the folder that holds its weights."
    )


def _weight_files(folder: Path, suffix: str) -> list[Path]:
    """The files that the folder's index names, or all of the kind."""
    if suffix == NATIVE:
        return sorted(folder.glob(NATIVE))
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index = folder / f"{stem}.{suffix}.index.json"
    if not index.is_file():
        return sorted(
            f
            for f in folder.glob(f"*.{suffix}")
            if not f.name.startswith(("consolidated", "training_args", "optimizer", "scheduler"))
        )
    weight_map = read_json(index, INDEX_MAX).get("weight_map", {})
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: its weight_map must name a file for each tensor. Download it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or len(os.fsencode(name)) > 255 or "\0" in name:
            raise CheckpointError(
                f"{index} names {shorten(name)!r}, which is not a file in its own folder; it is refused."
            )
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files that {index.name} names: "
            f"{', '.join(shorten(name) for name in missing[:4])}. Download them."
        )
    return [folder / n for n in names]


class _SafetensorsFile:
    """Reads tensors through a memory map that is renewed now and then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        try:
            self.handle: Any = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or cut short ({shorten(error, 200)}). Download it again."
            ) from error
        self._read = 0

    def get(self, name: str, shard: Shard | None = None) -> Tensor:
        """A tensor, of which a shard will be looked at. It is mapped, and what nobody looks at is not read."""
        with self._lock:
            if self._read > REOPEN_AFTER:
                self._open()
            try:
                tensor: Tensor = self.handle.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError, AttributeError) as error:
                raise CheckpointError(
                    f"{self.path}: {shorten(name)} cannot be read ({shorten(error, 200)}). Is it of a type that this "
                    "PyTorch has?"
                ) from error
            looked_at = tensor.shape if shard is None else Shard(shard.rows).shape_of(tuple(tensor.shape))
            self._read += math.prod(looked_at) * tensor.itemsize  # pages have other columns beside the wanted ones
            return tensor


class _SafetensorsTensor(TensorSource):
    def __init__(self, file: _SafetensorsFile, name: str, shape: tuple[int, ...], shard: Shard | None = None) -> None:
        self.file, self.name, self.shard = file, name, shard
        self.shape = shape if shard is None else shard.shape_of(shape)

    def read(self) -> Tensor:
        tensor = self.file.get(self.name, self.shard)
        return tensor if self.shard is None else cut(tensor, self.shard)

    def part(self, shard: Shard) -> TensorSource:
        if self.shard is not None:
            return super().part(shard)
        return _SafetensorsTensor(self.file, self.name, self.shape, shard)


def folder_metadata(folder: Path) -> dict[str, str]:
    """What the headers of the folder's safetensors files say beside their tensors. Raises CheckpointError."""
    metadata: dict[str, str] = {}
    for file in _weight_files(folder, "safetensors"):
        metadata |= _header(file)[1]
    return metadata


def safetensors_tensors(path: Path) -> NamedTensors:
    shapes, _ = _header(path)
    file = _SafetensorsFile(path)
    for name, shape in shapes.items():
        yield name, _SafetensorsTensor(file, name, shape)


def _header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Each tensor's shape, and the metadata, by a file's header; its own library then checks the rest."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{path} is damaged or cut short (its header is longer than it). Download it again.")
        if length > HEADER_MAX:
            raise CheckpointError(f"{path} has a header of {length} bytes; {HEADER_MAX >> 20} MiB are read.")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_without_duplicates)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is no text")
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        if any(type(n) is not int or not 0 <= n < 2**48 for shape in shapes.values() for n in shape):
            raise ValueError("a shape that is none")
    except RecursionError as error:
        raise CheckpointError(f"{path} is damaged (its header nests too deeply). Download it again.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged or cut short (its header: {shorten(error, 200)}). Download it again."
        ) from error
    return shapes, metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shorten(twice)} is there twice")
    return entries
