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
from octavo.loading.tensor_source import JoinedTensor, TensorSource, TransformedTensor
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
        layers, spelling = self.file.layers, self.spelling
        modules = module_names(self.file.arch, layers, iter(names.table), names.prefix)
        undo = undone(spelling, layers)
        config = self.config.section(spelling.section) if spelling.section else self.config
        done = set[str]()
        for name, parts, source in self._joined(layers):
            done |= parts
            yield name, source
        more = tuple(f"blk.{i}." for i in range(layers, self.file.value("block_count")))
        for stored in self.file.tensors:
            if stored in done or stored.startswith((*CONFIG_TENSORS, *more)):
                continue
            module, _, suffix = stored.rpartition(".")
            name = modules.get(stored) or _published(names, modules, module, suffix) or stored
            source = gguf_source(self.file, stored)
            change = undo.get(name) or undo.get(name.rpartition(".")[0])
            if "{e}" in name:
                for e in range(source.shape[0]):
                    yield name.replace("{e}", str(e)), source.item(e)
            elif change is not None:
                yield name, TransformedTensor(source, partial(change, c=config))
            else:
                yield name, source

    def _joined(self, layers: int) -> Iterator[tuple[str, set[str], TensorSource]]:
        """Tensors that are several in the file: the published name, the file's, and what is made of them."""
        for key, joined in self.spelling.joined.items():
            for i in map(str, range(layers)):
                parts = [part.replace("{i}", i) for part in joined.parts]
                if self.file.tensors.keys() >= {*parts}:
                    sources = [gguf_source(self.file, part) for part in parts]
                    yield key.replace("{i}", i), {*parts}, JoinedTensor(sources, joined.join)


def _published(names: Names, modules: Mapping[str, str], module: str, suffix: str) -> str | None:
    """The published name of a module's tensor: what is published without a suffix has one in the file."""
    if (known := modules.get(module)) is None:
        return None
    into = names.locate(known)
    return known if into is not None and into.full_name else f"{known}.{suffix}"


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
    table, names = name_map(arch, layers), dict[str, str]()
    for template in published:
        for layer in range(layers) if "{i}" in template else (0,):
            name = template.replace("{i}", str(layer))
            # llama.cpp keeps a layer's experts in one tensor, named without their number.
            known = name.replace(".{e}", "")
            for spelled in _spellings(known, prefix):
                if (key := table.get_name(spelled, try_suffixes=(".weight", ".bias"))) is not None:
                    if "{e}" in name or "{e}" not in names.get(key, ""):  # stacks are read one by one
                        names[key] = name
                    break
    return names


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """How the package's map may have a published name."""
    for spelled in (name, name.removeprefix(prefix), name.replace("language_model.", "")):
        yield spelled
        if spelled.endswith("_bias"):  # of what llama.cpp makes a bias
            yield spelled.removesuffix("_bias") + ".bias"
        if spelled.endswith(".dt_bias"):
            yield spelled.removesuffix("_bias") + "_proj.bias"
