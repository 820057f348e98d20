"""A model's files, with its config read: what is opened before any weight is."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.architectures import Architecture, Config, all_architectures, find_architecture, gguf_architectures
from octavo.architectures.mistral_params import mistral_config
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, OctavoError, UnsupportedModelError, did_you_mean
from octavo.files import read_json
from octavo.loading.formats import GGUFWeights, JoinedWeights, WeightFormat, folder_format
from octavo.loading.gguf_config import shared_config
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_mmproj import MMProj, projected
from octavo.loading.gguf_reader import shown
from octavo.loading.model_files import ModelFiles, find_model, find_other, is_native

log = logging.getLogger("octavo")

BESIDE_SECTION = ("architectures", "eos_token_id", "bos_token_id", "tie_word_embeddings")
"""Keys of a config whose language model's own are in a section."""


@dataclass
class Checkpoint:
    """A model's config, and where its weights are."""

    config: Config
    architecture: Architecture
    files: ModelFiles
    weights: WeightFormat
    gguf: GGUFFile | None = None
    mmproj: MMProj | None = None
    """The tower of a GGUF model, where it has one."""
    processor_folder: Path | None = None
    """Of another checkpoint, whose feature extractor serves where the model's own folder has none."""
    other_folders: tuple[Path, ...] = ()
    """Of other checkpoints, which its config names."""


def open_checkpoint(args: EngineArgs) -> Checkpoint:
    """The checkpoint of `args`: its config read, its weights not yet.

    Raises the errors of octavo.errors for a name, files or a config that no model can be made of.
    """
    files = find_model(args)
    return _open_gguf(files, args) if files.is_gguf else _open_folder(files, args)


def gguf_values(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    """What a config.json would say of the model of a file."""
    assert architecture.gguf is not None
    with sound_config(file.path):
        shared = shared_config(file)
        own = {**architecture.gguf.config(shared, file), "architectures": [architecture.name]}
    # llama.cpp turns whole heads unless a file says otherwise, whatever the published config's default is.
    values = {"partial_rotary_factor": 1.0, **shared, **own}
    if section := architecture.gguf.section:
        values = {**{key: values.get(key) for key in BESIDE_SECTION}, section: values}
    return values


def _open_gguf(files: ModelFiles, args: EngineArgs) -> Checkpoint:
    file = GGUFFile(files.path)
    with sound_config(files.path):
        architecture = gguf_architecture(file)
    values = gguf_values(file, architecture)
    if (mmproj := _mmproj(files, args, file)) is not None:
        with sound_config(mmproj.file.path):
            whole = mmproj.config(values, args.hf_overrides)
            text = architecture.config(values)
            weights = projected(GGUFWeights(file, architecture, text), architecture.build, mmproj)
        return Checkpoint(whole, mmproj.architecture, files, weights, file, mmproj)
    config = architecture.config({**values, **args.hf_overrides})
    return Checkpoint(config, architecture, files, GGUFWeights(file, architecture, config), file)


def _mmproj(files: ModelFiles, args: EngineArgs, text: GGUFFile) -> MMProj | None:
    """The tower beside a GGUF model. One that nobody named, and that cannot be read, leaves a model of text."""
    if files.mmproj is None:
        return None
    try:
        with sound_config(files.mmproj):
            return MMProj(GGUFFile(files.mmproj), text)
    except OctavoError as error:
        if args.mmproj is not None:
            raise
        log.warning("the model is loaded for texts alone: %s", error)
        return None


def _open_folder(files: ModelFiles, args: EngineArgs) -> Checkpoint:
    native = is_native(args.load_format, os.listdir(files.path))
    file = files.path / ("params.json" if native else "config.json")
    with sound_config(file):
        values = {**(mistral_config(read_json(file)) if native else read_json(file)), **args.hf_overrides}
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{files.path / 'config.json'} does not say its architecture ('architectures'). Add it with "
            "hf_overrides={'architectures': ['LlamaForCausalLM']} if you know it."
        )
    architecture = find_architecture(names)
    weights = folder_format(files.path, "mistral" if native else args.load_format, values)
    found = {
        key: find_other(values[key], key, args)
        for key, other in architecture.others.items()
        if other.is_named(key, values)
    }
    processor = next((found[key].path for key in found if architecture.others[key].has_processor), None)
    if found:
        values, weights = _with_others(architecture, values, weights, args, found)
    others = tuple(other.path for other in found.values())
    config = architecture.config(values)
    return Checkpoint(config, architecture, files, weights, processor_folder=processor, other_folders=others)


def _with_others(
    architecture: Architecture,
    values: dict[str, Any],
    weights: WeightFormat,
    args: EngineArgs,
    found: Mapping[str, ModelFiles],
) -> tuple[dict[str, Any], WeightFormat]:
    """A config with the sections, and weights with those, of the checkpoints that it names in their place."""
    parts = []
    for key, files in found.items():
        other, file = architecture.others[key], files.path / "config.json"
        with sound_config(file):
            section = read_json(file)
        values = {**values, other.section: section}
        parts.append((folder_format(files.path, args.load_format, section), other.names))
    return values, JoinedWeights(weights, parts) if parts else weights


def gguf_architecture(file: GGUFFile) -> Architecture:
    """What reads a file. Raises UnsupportedModelError where nothing does."""
    for architecture in gguf_architectures(file.arch):
        if architecture.gguf is not None and architecture.gguf.when(file):
            return architecture
    known = {arch for a in all_architectures().values() if a.gguf for arch in (a.gguf.arch, *a.gguf.also)}
    raise UnsupportedModelError(
        f"{file.path} is a GGUF of architecture {shown(file.arch)}, which Octavo does not read."
        f"{did_you_mean(file.arch, known)} It reads {', '.join(sorted(known))}."
    )


@contextmanager
def sound_config(path: Path, config: Config | None = None) -> Iterator[None]:
    """A damaged config fails in as many ways as there are values in it: all are the checkpoint's error.

    It names the sizes that `config` leaves out.
    """
    try:
        yield
    except UnsupportedModelError:
        raise
    except CheckpointError as error:
        if not (note := _left_out(config)):
            raise
        raise CheckpointError(f"{error}{note}") from error
    except OctavoError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the values of its config make no model ({type(error).__name__}: {str(error)[:200]}). "
            f"Is the file damaged?{_left_out(config)}"
        ) from error


def _left_out(config: Config | None) -> str:
    assumed = {} if config is None else config.assumed
    sizes = {k: v for k, v in assumed.items() if isinstance(v, int) and not isinstance(v, bool)}
    named = ", ".join(f"{key} ({size})" for key, size in sizes.items())
    return f" config.json leaves out {named}; these are its config class's defaults." if named else ""
