"""GGUF files: llama.cpp's names and changes undone, weights in the file's own kinds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.architectures import Architecture, Config
from octavo.architectures.gguf_format import GGUFFormat
from octavo.errors import CheckpointError
from octavo.loading.formats.weight_format import WeightFormat
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_reader import shown
from octavo.loading.gguf_source import GGUFSource, gguf_source
from octavo.loading.gguf_vocab import numbers
from octavo.loading.tensor_source import JoinedTensor, TensorInMemory, TensorSource, TransformedTensor
from octavo.ops import StoredRows
from octavo.parts import Names
from octavo.parts.draft_head import Predictor
from octavo.parts.weight_slots import Shard

FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps")}
"""What files may have as one tensor, and which parts it has, by llama.cpp's names."""
Undo = Callable[..., Any]
"""Makes the published tensor of llama.cpp's."""
NOTHING: Mapping[str, str] = MappingProxyType({})
NEXTN = {"embed_norm": "enorm", "hidden_norm": "hnorm", "project": "eh_proj", "norm": "shared_head_norm"}
"""llama.cpp's names of what is around a layer that predicts further tokens, by the places of a DraftHead."""
COPIES = ("embed_tokens.", "shared_head_head.")
"""Of the model's own table and head."""
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
        self._predictor: Predictor | None = None

    def read_also(self, predictor: Predictor) -> bool:
        """Have the first layer that predicts further tokens read too, if the file has one as `predictor` is."""
        is_there = f"blk.{self.file.layers}.nextn.eh_proj.weight" in self.file.tensors
        self._predictor = predictor if is_there and predictor.like else None
        return self._predictor is not None

    def names(self, published: Names) -> Names:
        return published.extended(self.spelling.names)

    def drop_pages(self) -> None:
        self.file.drop_pages()

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        layers, spelling = self.file.layers, self.spelling
        own = NOTHING if self._predictor is None else own_names(self._predictor, layers)
        blocks = max(layers + bool(own), self.file.value("decoder_block_count", 0))
        modules = module_names(self.file.arch, blocks, iter(names.table), names.prefix, spelling.spelled)
        undo = undone(spelling, layers + bool(own))
        if self._predictor is not None:
            modules, undo = with_predictor(modules, undo, self._predictor, layers)
        config = self.config.section(spelling.section) if spelling.section else self.config
        yield from self._of_header(layers)
        done = set[str]()
        for name, parts, source in self._joined(layers + bool(own)):
            done |= parts
            module, _, suffix = name.rpartition(".")
            yield f"{own.get(module, module)}.{suffix}", source
        more = tuple(f"blk.{i}." for i in range(layers + bool(own), self.file.value("block_count")))
        more += tuple(f"blk.{layers}.nextn.{name}" for name in COPIES)
        for stored, source in self._parts(modules):
            if stored in done or stored.startswith((*CONFIG_TENSORS, *more)):
                continue
            name = _published(names, modules, stored) or stored
            change = undo.get(name) or undo.get(name.rpartition(".")[0])
            if "{e}" in name:
                for e in range(source.shape[0]):
                    yield name.replace("{e}", str(e)), of_stack(source, e)
            elif change is not None:
                yield name, TransformedTensor(source, partial(change, c=config))
            else:
                yield name, source

    def _of_header(self, layers: int) -> Iterator[tuple[str, TensorSource]]:
        """Parameters of layers that are numbers in the header: one for all, or one each."""
        metadata = self.file.metadata
        for name, key in self.spelling.parameters.items():
            if key not in metadata:
                continue
            is_one = metadata.length(key) is None
            values = [metadata.typed(key, float, "a number")] * layers if is_one else None
            for i, value in enumerate(values or numbers(metadata, key, layers, whole=False) or []):
                yield name.replace("{i}", str(i)), TensorInMemory(torch.tensor([float(value)]))

    def _parts(self, modules: Mapping[str, str]) -> Iterator[tuple[str, TensorSource]]:
        """The file's tensors. What it has as one, and is published apart, comes in its parts."""
        for stored in self.file.tensors:
            source = gguf_source(self.file, stored)
            module, _, suffix = stored.rpartition(".")
            block, _, kind = module.rpartition(".")
            parts = [f"{block}.{part}" for part in FUSED.get(kind, ())]
            if not parts or parts[0] not in modules or (module in modules and "{e}" not in modules[parts[0]]):
                yield stored, source
                continue
            first = 0
            for part, size in zip(parts, self._sizes(kind, int(block.split(".")[-1]), source), strict=True):
                yield f"{part}.{suffix}", RowsOf(source, (first, first + size))
                first += size

    def _sizes(self, kind: str, layer: int, source: TensorSource) -> list[int]:
        """How many outputs each part of a tensor has."""
        if kind != "attn_qkv":
            return [source.shape[-2 if len(source.shape) > 2 else -1] // 2] * 2
        value = self.file.value
        counts = [value(f"attention.head_count{which}") for which in ("", "_kv")]
        heads, kv_heads = (count[layer] if isinstance(count, list) else count for count in counts)
        key = value("attention.key_length") or value("embedding_length") // heads
        return [heads * key, kv_heads * key, kv_heads * value("attention.value_length", key)]

    def _joined(self, layers: int) -> Iterator[tuple[str, set[str], TensorSource]]:
        """Tensors that are several in the file: the published name, the file's, and what is made of them."""
        for key, joined in self.spelling.joined.items():
            for i in map(str, range(layers if "{i}" in key else 1)):
                parts = [part.replace("{i}", i) for part in joined.parts]
                if self.file.tensors.keys() >= {*parts}:
                    sources = [gguf_source(self.file, part) for part in parts]
                    yield key.replace("{i}", i), {*parts}, JoinedTensor(sources, joined.join)


@dataclass
class RowsOf(TensorSource):
    """Some rows of a tensor, or of each of a stack of them."""

    source: GGUFSource
    rows: tuple[int, int]

    def __post_init__(self) -> None:
        shape, size = self.source.shape, self.rows[1] - self.rows[0]
        self.shape = (shape[0], size, *shape[2:]) if len(shape) > 2 else (size, *shape[1:])

    def item(self, index: int) -> TensorSource:
        """The rows of one of a stack."""
        return self.source.item(index).part(Shard(rows=(self.rows,)))

    def _own(self) -> TensorSource:
        return self.source.part(Shard(rows=(self.rows,)))

    def read(self) -> Tensor:
        return self._own().read()

    def stored(self) -> StoredRows | None:
        return self._own().stored()


def of_stack(source: TensorSource, index: int) -> TensorSource:
    """One of a stack of tensors."""
    assert isinstance(source, GGUFSource | RowsOf)
    return source.item(index)


def _published(names: Names, modules: Mapping[str, str], stored: str) -> str | None:
    """The published name of a file's tensor: one of the two may have an ending that the other has not."""
    if names.locate(stored) is not None:
        return stored
    module, _, suffix = stored.rpartition(".")
    if (whole := modules.get(stored)) is not None:
        return whole if names.locate(whole) is not None else f"{whole}.weight"
    if (known := modules.get(module)) is None:
        return None
    into = names.locate(known)
    return known if into is not None and into.full_name else f"{known}.{suffix}"


def undone(spelling: GGUFFormat, layers: int) -> dict[str, Undo]:
    """What llama.cpp changed, by published name."""
    return {
        name.replace("{i}", str(i)): change
        for key, change in spelling.undo.items()
        for name in Names({key: key}).table
        for i in range(layers if "{i}" in name else 1)
    }


def own_names(predictor: Predictor, layers: int) -> dict[str, str]:
    """The published names of a predictor's tensors, by those they had as one layer more of a model with `layers`."""
    return {like.replace("{i}", str(layers)): name for name, like in predictor.like.items()}


def with_predictor(
    modules: Mapping[str, str], undo: Mapping[str, Undo], predictor: Predictor, layers: int
) -> tuple[dict[str, str], dict[str, Undo]]:
    """`module_names` and `undone` of a model with a layer more, which is its predictor, by the predictor's own names.

    llama.cpp has it as the block after the model's layers. What is around it has names of its own there, and norms the
    change that the layer's have.
    """
    own = own_names(predictor, layers)
    named = {stored: own.get(published, published) for stored, published in modules.items()}
    changes = {
        (own[module] + name.removeprefix(module) if (module := _module_of(name, own)) else name): change
        for name, change in undo.items()
    }
    norm = next((own[name] for name in own if name.endswith("input_layernorm")), "")
    for published, into in Names(predictor.table).table.items():
        place = into.path.removeprefix("draft_head.")
        if place in NEXTN:
            named[f"blk.{layers}.nextn.{NEXTN[place]}"] = published
            if norm in changes and place != "project":
                changes[published] = changes[norm]
    return named, changes


def _module_of(name: str, own: Mapping[str, str]) -> str:
    """The module in `own` that a published name is of, with or without an ending; empty for none."""
    return next((module for module in (name, name.rpartition(".")[0]) if module in own), "")


def has_nextn(arch: str) -> bool:
    """Whether llama.cpp has places for layers that predict further tokens in files of an architecture."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return arch in kinds and gguf.MODEL_TENSOR.NEXTN_EH_PROJ in gguf.MODEL_TENSORS[kinds[arch]]


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


def module_names(
    arch: str, layers: int, published: Iterator[str], prefix: str, spelled: Mapping[str, str] = NOTHING
) -> Mapping[str, str]:
    """llama.cpp's name of a tensor's module to the published template (with `{i}` filled in and `{e}` kept).

    `published` are the name table's left sides, and `prefix` what some checkpoints leave out of them. Made with the
    gguf package's own map from published names, which has some parts of them as `spelled`.
    """
    table, names = name_map(arch, layers), dict[str, str]()
    for template in published:
        known_template = template
        for part, other in spelled.items():
            known_template = known_template.replace(part, other)
        for layer in range(layers) if "{i}" in template else (0,):
            name = template.replace("{i}", str(layer))
            # llama.cpp keeps a layer's experts in one tensor, named without their number.
            known = known_template.replace("{i}", str(layer)).replace(".{e}", "")
            for known_as in _spellings(known, prefix):
                if (key := table.get_name(known_as, try_suffixes=(".weight", ".bias"))) is not None:
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
        yield spelled + ".weight"  # as it has some, whose tensors have no ending
