"""A GGUF file, written again with its layers in another type."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.errors import ConfigError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_source import gguf_source
from octavo.loading.gguf_writing import type_for

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter


def quantize_gguf(path: Path, kind: str, out: Path, progress: Callable[[int], object]) -> list[str]:
    """Write the file at `path` to `out`, with its layers in the type `kind`, all else as it is.

    Args:
        progress: is told the bytes of each tensor that has been read.

    Returns: names of matrices that stay as they are, since their rows are no multiple of the type's blocks.

    Raises ConfigError for a split file, CheckpointError for one that is not sound.
    """
    from gguf import GGUFReader, GGUFWriter

    file = GGUFFile(path)
    if any(tensor.part for tensor in file.tensors.values()):
        raise ConfigError(f"{path} is a part of a split file, which is not supported. Join the parts first.")
    reader = GGUFReader(path)
    writer = GGUFWriter(out, file.arch)
    _copy_metadata(reader, writer, kind)
    kept = list[str]()
    for tensor in reader.tensors:
        chosen = type_for(tensor.name, tuple(tensor.shape[::-1]), kind, kept)
        data = tensor.data if chosen is None else _rounded(file, tensor.name, chosen)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type if chosen is None else _of_gguf(chosen))
        progress(int(tensor.n_bytes))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _of_gguf(kind: str) -> Any:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[kind]


def _rounded(file: GGUFFile, name: str, kind: str) -> "np.ndarray[Any, Any]":
    from gguf.quants import quantize

    source = gguf_source(file, name)
    floats = source.read().float().numpy()
    made: np.ndarray[Any, Any] = quantize(floats, _of_gguf(kind))
    return made


def _copy_metadata(reader: "GGUFReader", writer: "GGUFWriter", kind: str) -> None:
    """All keys but those that the writer makes itself, or that tell of the old type."""
    from gguf import GGUFValueType, LlamaFileType

    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        values = field.contents()
        of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values, field.types[0], of)
    name = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    writer.add_file_type(int(LlamaFileType[name]))
