"""llama.cpp's adapters: a GGUF file with two matrices, `.lora_a` and `.lora_b`, beside the name of each weight."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from octavo.architectures import Config
from octavo.architectures.gguf_format import GGUFFormat
from octavo.errors import CheckpointError, InvalidRequestError, shorten
from octavo.loading.adapter_files import AdapterConfig
from octavo.loading.adapter_places import output_order
from octavo.loading.adapter_tensors import ModuleTensors
from octavo.loading.formats.gguf import module_names, undone
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_source import gguf_source
from octavo.loading.model import LoadedModel
from octavo.lora import AdapterRef
from octavo.parts import Names

TABLE = "token_embd"


def read_gguf(
    path: Path, ref: AdapterRef, loaded: LoadedModel
) -> tuple[AdapterConfig, dict[str, ModuleTensors], Names]:
    """What the file says, its matrices by the published names of modules, and the table that has these.

    Raises InvalidRequestError for a file that is no such adapter, or is for models of another architecture.
    """
    try:
        file = GGUFFile(path)
        kind = [file.metadata.get("general.type"), file.metadata.get("adapter.type")]
        if kind != ["adapter", "lora"]:
            raise InvalidRequestError(
                f"the adapter {ref.name!r}: {shorten(path, 200)} is no LoRA adapter, but of the type {kind[0]!r}. Name "
                "a file that llama.cpp's convert_lora_to_gguf.py has written."
            )
        spelling = loaded.architecture.gguf
        if spelling is None or file.arch not in (spelling.arch, *spelling.also):
            raise InvalidRequestError(
                f"the adapter {ref.name!r} is for models that llama.cpp calls {file.arch!r}, and this is none."
            )
        alpha = file.metadata.get("adapter.lora.alpha", 0.0)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise InvalidRequestError(f"the adapter {ref.name!r}: adapter.lora.alpha must be a number.")
        names = loaded.model.names.extended(spelling.names)
        modules = _modules(file, spelling, names, loaded.config)
        if not alpha:  # the products are added as they are
            for found in modules.values():
                for part in ("b", "table_b"):
                    if part in found.parts:
                        found.parts[part] = found.parts[part] * found.parts[part].shape[1]
        return AdapterConfig(float(alpha) or 1.0), modules, names
    except CheckpointError as error:
        raise InvalidRequestError(f"the adapter {ref.name!r}: {error}") from error


def _modules(file: GGUFFile, spelling: GGUFFormat, names: Names, config: Config) -> dict[str, ModuleTensors]:
    layers = config.get("num_hidden_layers") or config.get("n_layer") or config.get("num_layers") or 0
    published = module_names(file.arch, layers, iter(names.table), names.prefix)
    undo = undone(spelling, layers)
    modules: dict[str, ModuleTensors] = {}
    for stored in file.tensors:
        weight, _, part = stored.rpartition(".")
        module = weight.removesuffix(".weight")
        if part not in ("lora_a", "lora_b") or module not in published:
            raise InvalidRequestError(f"the adapter's tensor {shorten(stored)!r} is of no layer of this model.")
        name, source = published[module], gguf_source(file, stored)
        change = undo.get(name) or undo.get(f"{name}.weight")
        for one, tensor in _each(name, source.read().to(torch.float32)):
            if part == "lora_b" and change is not None:
                order = output_order(partial(change, c=config), len(tensor))
                if order is None:
                    raise InvalidRequestError(
                        f"the adapter's tensor {shorten(stored)!r} is of a layer that llama.cpp stores otherwise than "
                        "row by row. Give PEFT's own files."
                    )
                tensor = tensor[order]
            key = part[-1]
            if module == TABLE:  # its first matrix has a row for each token
                key, tensor = f"table_{key}", tensor.t() if part == "lora_a" else tensor
            modules.setdefault(one, ModuleTensors()).parts[key] = tensor
    return modules


def _each(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A module's tensor, or one for each of the experts that lie in it."""
    if "{e}" not in name:
        yield name, tensor
        return
    for e, own in enumerate(tensor):
        yield name.replace("{e}", str(e)), own
