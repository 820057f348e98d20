"""A folder of floats, rounded and written as a checkpoint of compressed-tensors, which vLLM reads as well."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.files import read_json
from octavo.loading.checkpoint import Checkpoint, open_checkpoint, sound_config
from octavo.loading.formats.plain import PlainWeights
from octavo.loading.formats.unpacking import words_of
from octavo.loading.tensor_source import TensorSource, row_order
from octavo.parts import Names
from octavo.parts.draft_head import Predictor
from octavo.parts.weight_slots import Role, WeightSlot

SHARD_MAX = 2 << 30
"""Bytes of a file of weights."""
KEPT = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md")
"""Files of a model folder, beside its weights, that are copied."""


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded: `bits`, a scale for each `group` of inputs, and a zero of its own where `has_zeros`."""

    bits: int
    group: int
    has_zeros: bool

    def scheme(self) -> dict[str, Any]:
        """As config.json says it."""
        return {
            "num_bits": self.bits,
            "type": "int",
            "strategy": "group",
            "group_size": self.group,
            "symmetric": not self.has_zeros,
            "dynamic": False,
        }


ROUNDINGS = {"q4": Rounding(4, 32, True), "int8": Rounding(8, 32, False)}


def quantize_folder(args: EngineArgs, rounding: Rounding, out: Path, progress: Callable[[int], object]) -> list[str]:
    """Write the model of `args` to the folder `out`, its layers rounded, all else as it is.

    Args:
        progress: is told the bytes of each weight that has been read.

    Returns: names of weights of layers that stay floats, since the format has no place for them.

    Raises ConfigError for a checkpoint that is not of floats, and the errors of octavo.errors for its files.
    """
    checkpoint = open_checkpoint(args)
    if type(checkpoint.weights) is not PlainWeights:
        raise ConfigError(
            f"{args.model} is quantized already ({checkpoint.weights.name}). Give its folder of floats; a GGUF file "
            "can be written in another GGUF type."
        )
    layers = Layers(checkpoint)
    kept = list[str]()
    out.mkdir(exist_ok=True)
    writer = FolderWriter(out)
    for name, source in checkpoint.weights.tensors(layers.names):
        tensor = source.read()
        if layers.is_rounded(name, source) and source.shape[1] % rounding.group == 0:
            module = name.removesuffix(".weight")
            for suffix, value in packed(tensor, rounding).items():
                writer.add(f"{module}.{suffix}", value)
        else:
            if layers.role(name) is Role.MULTIPLIED and len(source.shape) > 1:
                kept.append(name)
            writer.add(name, tensor)
        progress(tensor.nbytes)
    writer.finish()
    _write_config(checkpoint, out, rounding, [*kept, "lm_head"])
    return kept


def _has(checkpoint: Checkpoint, predictor: Predictor, names: Names) -> bool:
    """Whether a checkpoint has tensors of the layer that predicts further tokens."""
    table = checkpoint.weights.names(predictor.names(names))
    found = (table.locate(name) for name, _ in checkpoint.weights.tensors(table))
    return any(into is not None and into.path.startswith("draft_head.") for into in found)


class Layers:
    """Which of a checkpoint's tensors are weights of layers, that rows are multiplied with.

    Args:
        predicts: whether the layer that predicts further tokens is one of them, if the checkpoint has it.
    """

    def __init__(self, checkpoint: Checkpoint, predicts: bool = False) -> None:
        self.predictor: Predictor | None = None
        """Of that layer, if it is one of them."""
        with sound_config(checkpoint.files.path, checkpoint.config), torch.device("meta"):
            model = checkpoint.architecture.build(checkpoint.config)
            if predicts and model.predictor is not None and _has(checkpoint, model.predictor, model.names):
                self.predictor = model.predictor
                model.names = self.predictor.names(model.names)
                model.guess_with(self.predictor.make())
        self.names: Names = checkpoint.weights.names(model.names)
        self._slots: dict[str, WeightSlot] = model.weight_slots_in(torch.float32)
        self._of_segments = {
            f"{path.rpartition('.')[0]}.{segment}.{path.rpartition('.')[2]}": slot
            for path, slot in self._slots.items()
            for segment in slot.segments
        }

    def _slot(self, name: str) -> WeightSlot | None:
        into = self.names.locate(name)
        if into is None:
            return None
        path = into.path.replace("{e}", "0")
        return self._slots.get(path) or self._of_segments.get(path)

    def role(self, name: str) -> Role | None:
        """What the tensor does; None for what goes nowhere."""
        slot = self._slot(name)
        return None if slot is None else slot.role

    def missing(self, names: Iterable[str]) -> list[str]:
        """Published names of parameters that tensors of these names leave empty."""
        filled = {into.path.replace("{e}", "0") for name in names if (into := self.names.locate(name))}
        filled |= {f"{path.rpartition('.')[0].rpartition('.')[0]}.{path.rpartition('.')[2]}" for path in filled}
        return [self.names.published(path) for path in self._slots if path not in filled]

    def is_rounded(self, name: str, source: TensorSource) -> bool:
        """Whether the format has a place for it: a matrix `[outputs, inputs]` of a layer."""
        into, is_matrix = self.names.locate(name), len(source.shape) == 2 and name.endswith(".weight")
        if not is_matrix or into is None or into.stacked or self.role(name) is not Role.MULTIPLIED:
            return False
        return into.transform is None or row_order(into.transform, source.shape) is not None


def packed(weight: Tensor, rounding: Rounding) -> dict[str, Tensor]:
    """The tensors of a weight `[outputs, inputs]`, by suffix: to the nearest of each group's steps."""
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, -1, rounding.group)
    most, middle = (1 << rounding.bits) - 1, 1 << (rounding.bits - 1)
    if rounding.has_zeros:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = _stored((high - low) / most, weight.dtype)
        zeros = (-low / scales.float()).round().clamp(0, most)
    else:
        scales = _stored(groups.abs().amax(-1) / (middle - 1), weight.dtype)
        zeros = torch.full_like(scales, middle, dtype=torch.float32)
    codes = (groups / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, most)
    tensors = {
        "weight_packed": words(codes.view(outputs, inputs).to(torch.int64), rounding.bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if rounding.has_zeros:
        tensors["weight_zero_point"] = words(zeros.t().to(torch.int64), rounding.bits).t().contiguous()
    return tensors


def _stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in the weight's dtype, none of them zero."""
    stored = scales.to(dtype)
    return torch.where(stored == 0, torch.ones((), dtype=dtype), stored)


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes `[rows, n]` of 4 or 8 bits as int32 `[rows, words]`, the first in the lowest bits."""
    in_a_word = 32 // bits
    count = words_of(codes.shape[1], bits)
    padded = torch.nn.functional.pad(codes, (0, count * in_a_word - codes.shape[1])).view(len(codes), count, in_a_word)
    whole = (padded << (torch.arange(in_a_word) * bits)).sum(-1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


class FolderWriter:
    """Writes tensors into files of bounded size, and an index where there are several."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._held: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        if self._bytes and self._bytes + tensor.nbytes > SHARD_MAX:
            self._flush()
        self._held[name] = tensor.contiguous().clone()  # tied tensors may lie in one memory
        self._bytes += tensor.nbytes

    def _flush(self) -> None:
        self._files.append(list(self._held))
        save_file(self._held, self._part(len(self._files)), metadata={"format": "pt"})
        self._total += self._bytes
        self._held, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.out / f"model-{number:05}.safetensors"

    def finish(self) -> None:
        """Write what is left. Files get the names that all readers look for."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._part(1).rename(self.out / "model.safetensors")
            return
        weight_map = dict[str, str]()
        for number, names in enumerate(self._files, 1):
            file = self.out / f"model-{number:05}-of-{count:05}.safetensors"
            self._part(number).rename(file)
            weight_map |= dict.fromkeys(names, file.name)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_config(checkpoint: Checkpoint, out: Path, rounding: Rounding, kept: list[str]) -> None:
    """config.json with what has been done, and the folder's other files."""
    folder = checkpoint.files.path
    for file in _others(folder):
        shutil.copyfile(file, out / file.name)
    config = read_json(folder / "config.json")
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": rounding.scheme()}},
        "ignore": sorted({name.removesuffix(".weight") for name in kept}),
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _others(folder: Path) -> Iterator[Path]:
    for pattern in KEPT:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and not file.name.endswith(".index.json"):
                yield file


def folder_bytes(folder: Path) -> int:
    """Of its weights."""
    return sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern))


def size_text(size: int) -> str:
    """Bytes for people."""
    unit = min(3, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**unit:.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
