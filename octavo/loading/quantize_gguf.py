"""A GGUF file, written again with its layers in another type."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_source import gguf_source
from octavo.loading.gguf_writing import Planned, TensorWriter, type_for

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter


MADE = ("general.architecture", "general.file_type", "general.alignment")
"""Keys that the writer makes itself, or that tell of the old file."""


def quantize_gguf(path: Path, kind: str, out: Path, progress: Callable[[int], object]) -> list[str]:
    """Write the file at `path` to `out`, with its layers in the type `kind`, all else as it is.

    Args:
        progress: is told the bytes of each tensor, as it was, once it is written.

    Returns: names of matrices that stay as they are, since their rows are no multiple of the type's blocks.

    Raises ConfigError for a split file, CheckpointError for one that is not sound.
    """
    file = GGUFFile(path)
    if any(tensor.part for tensor in file.tensors.values()):
        raise ConfigError(f"{path} is a part of a split file, which is not supported. Join the parts first.")
    try:
        return _write(file, kind, out, progress)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _write(file: GGUFFile, kind: str, out: Path, progress: Callable[[int], object]) -> list[str]:
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(file.path)
    writer = GGUFWriter(out, file.arch)
    _copy_metadata(reader, writer, kind)
    kept, planned = list[str](), list[Planned]()
    changed = set[str]()
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in tensor.shape[::-1])
        chosen = type_for(tensor.name, shape, kind, kept)
        planned.append(Planned(tensor.name, shape, chosen or tensor.tensor_type.name))
        changed |= set() if chosen is None else {tensor.name}
    target = TensorWriter(writer, out, planned)
    for tensor, plan in zip(reader.tensors, planned, strict=True):
        is_changed = tensor.name in changed
        target.write(plan.data(gguf_source(file, tensor.name).read().float().numpy()) if is_changed else tensor.data)
        progress(int(tensor.n_bytes))
    target.close()
    return kept


def _copy_metadata(reader: "GGUFReader", writer: "GGUFWriter", kind: str) -> None:
    """All keys but those that the writer makes itself, or that tell of the old type."""
    from gguf import GGUFValueType, LlamaFileType

    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in MADE:
            continue
        values = field.contents()
        of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, values, field.types[0], of)
    name = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    writer.add_file_type(int(LlamaFileType[name]))
