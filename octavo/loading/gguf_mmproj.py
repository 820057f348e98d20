"""GGUF files of a tower and its projector (llama.cpp's mmproj), with which a text model takes media."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.architectures import Architecture, Config, all_architectures
from octavo.architectures.projector_format import ProjectorFormat
from octavo.architectures.score_heads import Build
from octavo.errors import UnsupportedModelError
from octavo.loading.formats import GGUFWeights
from octavo.loading.formats.weight_format import WeightFormat
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_limits import MAX_LAYERS
from octavo.loading.gguf_reader import GGUFTensor, Metadata, shown
from octavo.loading.gguf_source import gguf_source
from octavo.loading.gguf_vocab import CONTROL, UNKNOWN, UNUSED
from octavo.loading.tensor_source import TensorSource
from octavo.parts import Names

_SIZES = {
    "block_count": ("num_hidden_layers", MAX_LAYERS),
    "embedding_length": ("hidden_size", 1 << 20),
    "feed_forward_length": ("intermediate_size", 1 << 24),  # 0 in old files of Qwen2-VL
    "attention.head_count": ("num_attention_heads", 1 << 14),
    "image_size": ("image_size", 1 << 14),
    "patch_size": ("patch_size", 1 << 12),
}
"""Whole numbers of a tower that every file has, what vision_configs call them, and their ends."""
_AUDIO_SIZES = {
    "num_mel_bins": ("num_mel_bins", 1 << 12),
    "embedding_length": ("d_model", 1 << 20),
    "feed_forward_length": ("encoder_ffn_dim", 1 << 24),
    "block_count": ("encoder_layers", MAX_LAYERS),
    "attention.head_count": ("encoder_attention_heads", 1 << 14),
}
_PATCHES, _SECOND = "v.patch_embd.weight", "v.patch_embd.weight.1"


class MMProj:
    """What such a file says, beside that of the text model, `text_file`.

    Raises UnsupportedModelError for a kind that is not read.
    """

    def __init__(self, file: GGUFFile, text_file: GGUFFile) -> None:
        self.file, self.text_file = file, text_file
        if file.arch != "clip":
            raise UnsupportedModelError(
                f"{file.path} is a GGUF of architecture {shown(file.arch)}, and no tower for pictures or sounds (clip)."
            )
        text = file.metadata.text
        kind = text("clip.projector_type") or text("clip.vision.projector_type") or "mlp"
        self.architecture, self.format = self._of_kind(kind)

    @property
    def tensors(self) -> Mapping[str, GGUFTensor]:
        return self.file.tensors

    def integer(self, key: str, min: int, max: int) -> int | None:
        return self.file.metadata.integer(f"clip.{key}", min, max)

    def numbers(self, key: str, most: int) -> list[int] | None:
        return _numbers(self.file.metadata, f"clip.{key}", most)

    def text_numbers(self, key: str, most: int) -> list[int] | None:
        return _numbers(self.text_file.metadata, f"{self.text_file.arch}.{key}", most)

    def token(self, text: str) -> int | None:
        tokens = [] if self.text_file.vocabulary is None else self.text_file.vocabulary.tokens
        return tokens.index(text) if text in tokens else None

    def spare_token(self) -> int | None:
        vocabulary = self.text_file.vocabulary
        if vocabulary is None:
            return None
        used = {id for name, id in vocabulary.special.items() if name != "unknown"} | vocabulary.ends
        spare = [i for i, kind in enumerate(vocabulary.types) if kind in (UNKNOWN, CONTROL, UNUSED) and i not in used]
        return spare[-1] if spare else None

    def vision_config(self) -> dict[str, Any]:
        """Sizes of the tower, its activation and the epsilon of its norms. Raises CheckpointError for a missing one."""
        metadata, config = self.file.metadata, dict[str, Any]()
        for key, (name, most) in _SIZES.items():
            config[name] = self.integer(f"vision.{key}", 0 if key == "feed_forward_length" else 1, most)
            if config[name] is None:
                metadata.fail(f"clip.vision.{key} is missing")
        eps = metadata.typed("clip.vision.attention.layer_norm_epsilon", float, "a number", 1e-6)
        silu, gelu = metadata.flag("clip.use_silu", False), metadata.flag("clip.use_gelu", False)
        # llama.cpp's own default is the approximation that CLIP has.
        return {**config, "layer_norm_eps": eps, "hidden_act": "silu" if silu else "gelu" if gelu else "quick_gelu"}

    def audio_config(self) -> dict[str, Any]:
        """Sizes of Whisper's encoder. Raises CheckpointError for a missing one."""
        config, positions = dict[str, Any](), self.tensors.get("a.position_embd.weight")
        for key, (name, most) in _AUDIO_SIZES.items():
            config[name] = self.integer(f"audio.{key}", 1, most)
            if config[name] is None:
                self.file.metadata.fail(f"clip.audio.{key} is missing")
        if positions is None or not positions.shape:
            self.file.metadata.fail("tensor a.position_embd.weight is missing")
        return {**config, "max_source_positions": positions.shape[0]}

    def config(self, text: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
        """The config of the whole model, whose text model has the values `text`."""
        said, section = self.format.config(self), self.format.section
        whole = {**said, section: {**text, **said.get(section, {})}} if section else {**text, **said}
        return self.architecture.config({**whole, "architectures": [self.architecture.name], **overrides})

    def preprocessor(self) -> dict[str, Any]:
        """What the file says of preprocessor_config.json. Raises CheckpointError for what are no three numbers."""
        metadata, made = self.file.metadata, self.format.preprocessor(self)
        for name in ("image_mean", "image_std"):
            if (key := f"clip.vision.{name}") in metadata:
                if metadata.length(key) != 3:
                    metadata.fail(f"{key} must be three numbers")
                made[name] = metadata.array(key).tolist()
        return made

    def _of_kind(self, kind: str) -> tuple[Architecture, ProjectorFormat]:
        known = [(a, each) for a in all_architectures().values() for each in a.mmproj]
        for architecture, each in known:
            if each.kind == kind and each.when(self):
                return architecture, each
        raise UnsupportedModelError(
            f"{self.file.path} holds a tower of the kind {shown(kind)}, which Octavo does not read. It reads "
            f"{', '.join(sorted({each.kind for _, each in known}))}. The published checkpoint can be loaded as it is."
        )


class TwoFrames(TensorSource):
    """A convolution over two frames, `[outputs, channels, 2, height, width]`, which files have as one for each."""

    def __init__(self, file: GGUFFile) -> None:
        self.frames = [gguf_source(file, name) for name in (_PATCHES, _SECOND)]
        shape, other = (frame.shape for frame in self.frames)
        if shape != other or len(shape) < 2:
            file.metadata.fail(f"{_PATCHES} is {list(shape)}, and {_SECOND} is {list(other)}")
        self.shape = (*shape[:2], 2, *shape[2:])

    def read(self) -> Tensor:
        return torch.stack([frame.read() for frame in self.frames], dim=2)


def _numbers(metadata: Metadata, key: str, most: int) -> list[int] | None:
    """A list of whole numbers up to 65536, None where the file lacks it. Raises CheckpointError for what is no such."""
    if key not in metadata:
        return None
    if (metadata.length(key) or most + 1) > most:
        metadata.fail(f"{key} must be a list of at most {most} numbers")
    values: list[int] = metadata.array(key).tolist()
    if not all(isinstance(value, int) and 0 <= value <= 1 << 16 for value in values):
        metadata.fail(f"{key} must have whole numbers up to {1 << 16}")
    return values


class ProjectedWeights(WeightFormat):
    """The weights of a text model's file and of its tower's.

    Args:
        text: the text model's.
        names: the text model's own table, with what `text` adds.
        mmproj: the tower's.
    """

    name = "gguf"
    as_stored = True

    def __init__(self, text: GGUFWeights, names: Names, mmproj: MMProj) -> None:
        self.text, self.text_names, self.mmproj = text, names, mmproj

    def names(self, published: Names) -> Names:
        format = self.mmproj.format
        spelled = {format.text(name): into for name, into in self.text.spelling.names.items()}
        return published.extended(spelled).extended(format.names(self.mmproj))

    def drop_pages(self) -> None:
        self.text.drop_pages()
        self.mmproj.file.drop_pages()

    def tensors(self, names: Names) -> Iterator[tuple[str, TensorSource]]:
        for name, source in self.text.tensors(self.text_names):
            yield self.mmproj.format.text(name), source
        file = self.mmproj.file
        for name in file.tensors:
            if name == _PATCHES and _SECOND in file.tensors:
                yield name, TwoFrames(file)
            elif name != _SECOND or _PATCHES not in file.tensors:
                yield name, gguf_source(file, name)


def projected(text: GGUFWeights, build: Build, mmproj: MMProj) -> ProjectedWeights:
    """The weights of a model of two files. `build` composes the text model, whose names are needed by themselves."""
    with torch.device("meta"):
        names = build(text.config).names
    return ProjectedWeights(text, text.names(names), mmproj)
