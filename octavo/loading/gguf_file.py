"""GGUF files: metadata and tensors, of one file or of several parts.

The header is parsed by octavo.loading.gguf_reader: the `gguf` package takes seconds for a large vocabulary. Its tables
of types and its map of tensor names serve the rest.
"""

import mmap
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.loading.gguf_limits import checked
from octavo.loading.gguf_reader import PART_NAME, GGUFTensor, Metadata, read_header, shown
from octavo.loading.gguf_vocab import Vocabulary, read_vocabulary

MAX_LABELS = 1 << 16


class GGUFFile:
    """A GGUF file's metadata and tensors. Any part of a split file stands for all of them.

    Raises CheckpointError, naming the file and what is wrong, for anything that is not a sound GGUF, and for a part
    that is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        named = read_header(path)
        self.paths = _part_paths(path, named[1])
        """Of all its parts."""
        parts = [named if p == path else read_header(p) for p in self.paths]
        self._maps: list[mmap.mmap] = [data for data, _, _ in parts]
        self.metadata: Metadata = parts[0][1]
        self.tensors: dict[str, GGUFTensor] = {}
        for number, (_, metadata, tensors) in enumerate(parts):
            if len(parts) > 1 and metadata.integer("split.no", 0, 1 << 16) not in (number, None):
                metadata.fail(f"it says that it is part {metadata['split.no'] + 1}, and its name {number + 1}")
            for tensor in tensors:
                if tensor.name in self.tensors:
                    metadata.fail(f"tensor {shown(tensor.name)} is in two parts")
                self.tensors[tensor.name] = replace(tensor, part=number) if number else tensor
        total = self.metadata.integer("split.tensors.count", 0, 1 << 31)
        if total not in (len(self.tensors), None):
            self.metadata.fail(f"its parts have {len(self.tensors)} tensors of {total}")

    def data(self, tensor: GGUFTensor) -> mmap.mmap:
        """The memory map that `tensor` lies in."""
        return self._maps[tensor.part]

    def drop_pages(self) -> None:
        """Tell the system that pages of the file were used, so that they do not count as ours."""
        for data in self._maps:
            drop_pages(data, 0, len(data))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens that the file carries, if it does. Raises CheckpointError where they contradict each other."""
        return read_vocabulary(self.metadata, self.rows_of_tokens)

    @property
    def rows_of_tokens(self) -> int | None:
        """How many tokens the model has vectors for."""
        table = self.tensors.get("token_embd.weight")
        return table.shape[0] if table is not None and table.shape else None

    @property
    def arch(self) -> str:
        arch = self.metadata.text("general.architecture")
        if arch is None:
            raise CheckpointError(f"{self.path} does not say its architecture (general.architecture).")
        return arch

    @property
    def layers(self) -> int:
        """How many layers the model has, without those that predict further tokens."""
        return int(self.value("block_count")) - int(self.value("nextn_predict_layers", 0))

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata of the file's own architecture: `value("block_count")` is `llama.block_count`.

        Raises CheckpointError for a value of another type, or beyond what any model has.
        """
        return checked(self.metadata, self.arch, key, default)

    def texts(self, key: str) -> list[str] | None:
        """A list of texts of the file's own architecture. Raises CheckpointError for anything else."""
        return self.metadata.texts(f"{self.arch}.{key}", MAX_LABELS)


def drop_pages(data: mmap.mmap, first: int, end: int) -> None:
    """Tell the system that these bytes of a mapped file were used. They are read again when they are needed."""
    if hasattr(data, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        first = first // mmap.PAGESIZE * mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, first, end - first)


def _part_paths(path: Path, metadata: Metadata) -> list[Path]:
    """The files that make up the one at `path`, in order. Raises CheckpointError that names a missing one."""
    name = PART_NAME.fullmatch(path.name)
    count = metadata.integer("split.count", 0, 0xFFFF)
    if count is None:
        count = int(name[3]) if name else 1
    if count <= 1:
        return [path]
    if name is None or int(name[3]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, and its name does not say which. Name them as they were published: "
            f"{path.stem[:40]}-00001-of-{count:05d}.gguf and so on."
        )
    parts = [path.with_name(f"{name[1]}-{number:05d}-of-{name[3]}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{path} is one of {count} parts, and {part.name} is missing beside it. Download it.")
    return parts
