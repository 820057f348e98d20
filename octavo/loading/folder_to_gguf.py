"""A folder of floats, written as a GGUF file: what octavo.loading.formats.gguf reads, the other way round.

One table serves both ways. A family's GGUFFormat says how llama.cpp stores it; names are found by the places in the
model that tensors go to, and its changes to tensors are turned round. What the header says is then read again, and must
make the same model: a file is written only if it says all that config.json does.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.architectures import Architecture, all_architectures
from octavo.architectures.gguf_format import REDO, GGUFFormat
from octavo.architectures.rope_settings import position_limit
from octavo.architectures.text_config import text_config
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, OctavoError, UnsupportedModelError
from octavo.loading.checkpoint import Checkpoint, gguf_architecture, gguf_values, open_checkpoint, sound_config
from octavo.loading.formats.gguf import has_nextn, module_names, undone, with_predictor
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_from_config import header_values, rope_tensors
from octavo.loading.gguf_from_tokenizer import check_tokenizer, tokenizer_values
from octavo.loading.gguf_writing import Planned, TensorWriter, add_values, type_for
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.loading.quantize_folder import Layers
from octavo.loading.same_model import difference
from octavo.loading.tensor_source import TensorSource, row_order
from octavo.parts import Into, Names
from octavo.text.tokenizer import FastTokenizer

Change = Callable[[Tensor], Tensor]
TYPE_OF = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def folder_to_gguf(args: EngineArgs, kind: str, out: Path, progress: Callable[[int], object]) -> list[str]:
    """Write the model of `args` to the file `out`, its layers in the GGUF type `kind`.

    Args:
        progress: is told the bytes of each weight that has been read.

    Returns: names of matrices that stay floats, since their rows are no multiple of the type's blocks.

    Raises ConfigError for a checkpoint that is not of floats, UnsupportedModelError for one that such a file has no
    place for, and the errors of octavo.errors for its files.
    """
    checkpoint = open_checkpoint(args)
    if type(checkpoint.weights) is not PlainWeights:
        raise ConfigError(f"{args.model} is quantized already ({checkpoint.weights.name}). Give its folder of floats.")
    reader = _reader(checkpoint.architecture)
    if "generate" not in checkpoint.architecture.tasks or text_config(checkpoint.config) is not checkpoint.config:
        raise _refused(checkpoint.architecture, "it is no language model, or more than one")
    try:
        return _write(args, checkpoint, reader, kind, out, progress)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _reader(architecture: Architecture) -> Architecture:
    """The architecture that reads files of this one: Llama where none does, whose twins have other names."""
    known = all_architectures()
    formats = {a.gguf.arch: a for a in reversed(known.values()) if a.gguf is not None}
    reader = architecture if architecture.gguf is not None else formats.get(architecture.read_as or "llama")
    if reader is None or reader.gguf is None or reader.gguf.section:
        raise _refused(architecture, "no such file is read")
    return reader


def _refused(architecture: Architecture, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{architecture.name} with this config.json cannot be written as a GGUF file: {why}. --to q4 or int8 writes a "
        "folder in compressed-tensors' format."
    )


def _write(
    args: EngineArgs,
    checkpoint: Checkpoint,
    reader: Architecture,
    kind: str,
    out: Path,
    progress: Callable[[int], object],
) -> list[str]:
    from gguf import GGUFWriter

    assert reader.gguf is not None
    with sound_config(checkpoint.files.path):
        plan = _Plan(checkpoint, reader.gguf)
    kept = list[str]()
    tensors = [plan.planned(item, kind, kept) for item in plan.items]
    tables = [Planned(name, tuple(t.shape), "F32") for name, t in plan.tables.items()]
    writer = GGUFWriter(out, reader.gguf.arch)
    add_values(writer, {f"{reader.gguf.arch}.{key}": value for key, value in plan.header.items()})
    tokenizer = model_tokenizer(args, checkpoint.files)
    if tokenizer is not None and not isinstance(tokenizer, FastTokenizer):
        raise UnsupportedModelError(
            f"the tokenizer of {args.model} is Python code, which a GGUF file has no place for. Leave it out with "
            "--skip-tokenizer-init, and give it with tokenizer= where the file is used."
        )
    rows = next(item.shape[0] for item in plan.items if item.name == "token_embd.weight")
    add_values(writer, {} if tokenizer is None else tokenizer_values(tokenizer, rows))
    _add_general(writer, args, kind)
    file = TensorWriter(writer, out, [*tables, *tensors])
    for table in plan.tables.values():
        file.write(table.numpy())
    file.pretend()
    header = GGUFFile(out)
    _check_model(checkpoint, reader, header, plan.predictor is not None)
    if tokenizer is not None:
        check_tokenizer(tokenizer, header)
    for item, tensor in zip(plan.items, tensors, strict=True):
        floats = item.read()
        file.write(tensor.data(floats.float().numpy()))
        progress(floats.nbytes)
    file.close()
    return kept


def _add_general(writer: Any, args: EngineArgs, kind: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(Path(args.model).name)
    writer.add_file_type(int(LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]))
    writer.add_quantization_version(2)


def _check_model(checkpoint: Checkpoint, reader: Architecture, header: GGUFFile, predicts: bool) -> None:
    """Raises UnsupportedModelError where the file's header does not make the folder's model.

    `predicts`: whether with the layer that predicts further tokens.
    """
    found_as = reader
    try:
        found_as = gguf_architecture(header)
        config = found_as.config(gguf_values(header, found_as))
        with torch.device("meta"):
            models = checkpoint.architecture.build(checkpoint.config), found_as.build(config)
            for model in models if predicts else ():
                if model.predictor is not None:
                    model.guess_with(model.predictor.make())
            found = difference(*models)
        limits = position_limit(checkpoint.config), position_limit(config)
        if found is None and limits[0] != limits[1]:
            found = f"positions up to {limits[1]} and not {limits[0]}"
    except OctavoError as error:
        found = str(error)
    if found is not None:
        raise _refused(checkpoint.architecture, f"read again as {found_as.name}, it would be another model: {found}")


@dataclass(frozen=True)
class _Item:
    """A tensor of the file: of one published tensor, or a stack of each expert's."""

    name: str
    sources: tuple[TensorSource, ...]
    change: Change
    is_stack: bool

    @property
    def shape(self) -> tuple[int, ...]:
        each = tuple(self.change(torch.empty(self.sources[0].shape, device="meta")).shape)
        return (len(self.sources), *each) if self.is_stack else each

    def read(self) -> Tensor:
        made = [self.change(source.read()) for source in self.sources]
        return torch.stack(made) if self.is_stack else made[0]


class _Plan:
    """What a file of a checkpoint will have, and from where."""

    def __init__(self, checkpoint: Checkpoint, format: GGUFFormat) -> None:
        self.format, self.config, self.architecture = format, checkpoint.config, checkpoint.architecture
        layers = Layers(checkpoint, has_nextn(format.arch))
        self.predictor = layers.predictor
        self.count = int(self.config.first("num_hidden_layers", "n_layer", "num_layers"))
        self.tables, more = rope_tensors(self.config)
        self.header = {**header_values(self.config, format), **more}
        if self.predictor is not None:
            self.header |= {"block_count": self.count + 1, "nextn_predict_layers": 1}
        self._names = layers.names
        self._undo = undone(format, self.count + (self.predictor is not None))
        self._places = self._by_place(layers.names.extended(format.names))
        published = dict(checkpoint.weights.tensors(layers.names))
        if missing := layers.missing(published):
            raise CheckpointError(f"{checkpoint.files.path} lacks {missing[0]}. Download the whole model.")
        self.items = list(self._items(published, checkpoint, layers))

    def _by_place(self, names: Names) -> dict[str, tuple[str, str, Into]]:
        """By places in the model: llama.cpp's name, the published one, and the entry of the table."""
        blocks = self.count + (self.predictor is not None)
        modules = module_names(self.format.arch, blocks, iter(names.table), names.prefix, self.format.spelled)
        if self.predictor is not None:
            modules, self._undo = with_predictor(modules, self._undo, self.predictor, self.count)
        stored = {published: name for name, published in modules.items()}
        places = dict[str, tuple[str, str, Into]]()
        for template, into in names.table.items():
            for i in map(str, range(self.count if "{i}" in template else 1)):
                published = template.replace("{i}", i)
                if published in stored:
                    places[into.path.replace("{i}", i)] = (stored[published], published, into)
        return places

    def _items(self, published: dict[str, TensorSource], checkpoint: Checkpoint, layers: Layers) -> Iterator[_Item]:
        stacks = dict[str, dict[int, _Item]]()
        for name, source in published.items():
            if layers.role(name) is None:
                if not self._names.is_ignored(name) and self._names.locate(name) is None:
                    raise CheckpointError(f"{checkpoint.files.path}: the model has no place for the tensor {name}.")
                continue
            number, item = self._item(name, source)
            if number is None:
                yield item
            else:
                stacks.setdefault(item.name, {})[number] = item
        for stored, parts in stacks.items():
            if set(parts) != set(range(len(parts))):
                raise CheckpointError(f"{checkpoint.files.path}: some experts' tensors of {stored} are missing.")
            yield _Item(stored, tuple(parts[i].sources[0] for i in range(len(parts))), parts[0].change, True)

    def _item(self, name: str, source: TensorSource) -> tuple[int | None, _Item]:
        """An expert's number, and the tensor of the file that one published tensor becomes, or a part of it."""
        own = self._names.locate(name)
        assert own is not None
        module, _, suffix = (own.path, "", "") if own.full_name else own.path.rpartition(".")
        number, place = None, self._places.get(module)
        if place is None and (match := EXPERT.search(module)):
            number, place = int(match[1]), self._places.get(EXPERT.sub(".{e}.", module, count=1))
        if place is None or own.stacked:
            raise _refused(self.architecture, f"llama.cpp has no tensor like {name}")
        stored, published, into = place
        suffix = suffix or ("bias" if name.endswith("bias") else "weight")
        change = self._undo.get(f"{published}.{suffix}") or self._undo.get(published)
        redo = None if change is None else self._redone(partial(change, c=self.config), change, source.shape, name)
        before = own.transform if into.transform is None else None  # the file has it as the model does
        steps = [step for step in (before, redo) if step is not None]
        return number, _Item(f"{stored}.{suffix}", (source,), partial(_changed, steps=steps), False)

    def _redone(self, undo: Change, known: Any, shape: tuple[int, ...], name: str) -> Change:
        """What makes llama.cpp's tensor of the published one."""
        if known in REDO:
            return REDO[known]
        order = row_order(undo, (shape[0], 2))
        if order is None:
            raise _refused(self.architecture, f"what llama.cpp makes of {name} is only read")
        return partial(torch.index_select, dim=0, index=torch.argsort(order))

    def planned(self, item: _Item, kind: str, kept: list[str]) -> Planned:
        """The tensor in its type: `kind`, or its own."""
        chosen = type_for(item.name, item.shape, kind, kept)
        if chosen is None:
            chosen = TYPE_OF.get(item.sources[0].read().dtype, "F32") if item.name in kept else "F32"
        return Planned(item.name, item.shape, chosen)


EXPERT = re.compile(r"(?<=\.experts)\.(\d+)\.")


def _changed(tensor: Tensor, steps: list[Change]) -> Tensor:
    for step in steps:
        tensor = step(tensor)
    return tensor
