"""GGUF files: llama.cpp's names and changes undone, weights in the file's own kinds."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from octavo.architectures import Architecture, Config
from octavo.architectures.gguf_format import GGUFFormat
from octavo.errors import CheckpointError
from octavo.loading.formats.weight_format import WeightFormat
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_reader import shown
from octavo.loading.gguf_source import gguf_source
from octavo.loading.tensor_source import TensorSource, TransformedTensor
from octavo.parts import Names

CONFIG_TENSORS = ("rope_freqs.", "rope_factors_")
"""Beginnings of tensors that are read with the config."""


class GGUFWeights(WeightFormat):
    """The weights of a file.

    Args:
        file: its header.
        architecture: what it is read as, which says how llama.cpp stores it.
        config: of the model.
    """

    name = "gguf"
    as_stored = True

    def __init__(self, file: GGUFFile, architecture: Architecture, config: Config) -> None:
        assert architecture.gguf is not None
        self.file, self.spelling, self.config = file, architecture.gguf, config

    def names(self, published: Names) -> Names:
        return published.extended(self.spelling.names)

    def drop_pages(self) -> None:
        self.file.drop_pages()

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        layers = self.file.value("block_count")
        modules = module_names(self.file.arch, layers, iter(names.table), names.prefix)
        undo = undone(self.spelling, layers)
        for stored in self.file.tensors:
            if stored.startswith(CONFIG_TENSORS):
                continue
            module, _, suffix = stored.rpartition(".")
            name = modules.get(stored) or (f"{modules[module]}.{suffix}" if module in modules else stored)
            source = gguf_source(self.file, stored)
            change = undo.get(name) or undo.get(name.rpartition(".")[0])
            if "{e}" in name:
                for e in range(source.shape[0]):
                    yield name.replace("{e}", str(e)), source.item(e)
            elif change is not None:
                yield name, TransformedTensor(source, partial(change, c=self.config))
            else:
                yield name, source


def undone(spelling: GGUFFormat, layers: int) -> dict[str, Callable[..., Any]]:
    """What llama.cpp changed, by published name."""
    return {
        name.replace("{i}", str(i)): change
        for key, change in spelling.undo.items()
        for name in Names({key: key}).table
        for i in range(layers if "{i}" in name else 1)
    }


def name_map(arch: str, layers: int) -> Any:
    """The gguf package's map of published names for an architecture.

    Made from a copy of what its class knows: it writes one architecture's exceptions over the others' names.
    """
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in kinds:
        raise CheckpointError(f"GGUF architecture {shown(arch)} is not known to the gguf package that is installed.")

    class Map(gguf.TensorNameMap):  # type: ignore[misc]
        block_mappings_cfg: ClassVar[dict[Any, Any]] = dict(gguf.TensorNameMap.block_mappings_cfg)

    return Map(kinds[arch], layers)


def module_names(arch: str, layers: int, published: Iterator[str], prefix: str) -> Mapping[str, str]:
    """llama.cpp's name of a tensor's module to the published template (with `{i}` filled in and `{e}` kept).

    `published` are the name table's left sides, and `prefix` what some checkpoints leave out of them. Made with the
    gguf package's own map from published names.
    """
    table, names = name_map(arch, layers), {}
    for template in published:
        for layer in range(layers) if "{i}" in template else (0,):
            name = template.replace("{i}", str(layer))
            # llama.cpp keeps a layer's experts in one tensor, named without their number.
            known = name.replace(".{e}", "")
            for spelled in (known, known.removeprefix(prefix)):
                if (key := table.get_name(spelled, try_suffixes=(".weight", ".bias"))) is not None:
                    names[key] = name
                    break
    return names
