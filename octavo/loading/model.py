"""A model ready to run: composed from its config, filled from its checkpoint, with its tokenizer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from octavo.architectures import Architecture, Config, all_architectures, find_architecture
from octavo.architectures.rope_settings import position_limit
from octavo.config import EngineArgs, PoolerConfig
from octavo.errors import CheckpointError, ConfigError, OctavoError, UnsupportedModelError, did_you_mean
from octavo.files import read_json
from octavo.loading.checkpoint import ChangedSource, TensorSource, checkpoint_tensors
from octavo.loading.gguf_config import shared_config
from octavo.loading.gguf_file import GGUFFile, tensor_names
from octavo.loading.gguf_reader import shown
from octavo.loading.gguf_source import gguf_source
from octavo.loading.model_info import ModelInfo
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.loading.pooling_config import choose_pooling, pooling_config
from octavo.loading.precision import Precision, choose_precision
from octavo.loading.quantized import refuse_quantized
from octavo.loading.source import ModelFiles, find_model
from octavo.loading.weights import WeightLoader
from octavo.ops import Backend, select_backend
from octavo.parts import CausalLM, Names
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")

DEFAULT_LENGTH = 8192
"""The longest request of a model whose config sets no bound."""


@dataclass
class LoadedModel:
    """What an executor runs."""

    model: CausalLM
    config: Config
    architecture: Architecture
    tokenizer: Tokenizer | None
    precision: Precision
    backend: Backend
    info: ModelInfo


@dataclass
class Checkpoint:
    """A model's config, and its tensors under published names."""

    config: Config
    architecture: Architecture
    gguf: GGUFFile | None
    files: ModelFiles
    load_format: str

    def tensors(self, model: CausalLM) -> Iterator[tuple[str, TensorSource]]:
        if self.gguf is None:
            return checkpoint_tensors(self.files.path, self.load_format)
        return _gguf_tensors(self.gguf, self.architecture, self.config, model)


def load_model(args: EngineArgs) -> LoadedModel:
    """Find, read and lay out the model of `args`.

    Raises the errors of octavo.errors for everything that can be wrong with its name, files or options.
    """
    checkpoint = open_checkpoint(args)
    task = _task(args, checkpoint.architecture)
    config, backend = checkpoint.config, select_backend(_device(args), args.ops)
    if args.threads is not None:
        backend.set_threads(args.threads)
    precision = choose_precision(args, config, backend, checkpoint.gguf is not None)
    with _sound_config(checkpoint.files.path, config), torch.device("meta"):
        model = checkpoint.architecture.build(config)
    if task == "embedding":
        model.drop_head()
    tokenizer = model_tokenizer(args, checkpoint.files, checkpoint.gguf)
    with _sound_config(checkpoint.files.path, config):
        WeightLoader(model, precision, backend).load(checkpoint.tensors(model), str(checkpoint.files.path))
    return LoadedModel(
        model=model.eval(),
        config=config,
        architecture=checkpoint.architecture,
        tokenizer=tokenizer,
        precision=precision,
        backend=backend,
        info=_info(args, checkpoint, model, task, tokenizer),
    )


def _info(
    args: EngineArgs, checkpoint: Checkpoint, model: CausalLM, task: str, tokenizer: Tokenizer | None
) -> ModelInfo:
    config, files = checkpoint.config, checkpoint.files
    generation = _generation_config(args, files)
    pooling = PoolerConfig() if files.is_gguf else pooling_config(files.path)
    return ModelInfo(
        task=task,
        vocab_size=model.vocab_size,
        max_model_len=_max_model_len(args, config),
        eos_token_ids=_eos_tokens(config, generation, tokenizer, model.vocab_size),
        generation_config=generation,
        labels=_labels(config),
        num_scores=model.num_scores,
        pooling=choose_pooling(task, args.override_pooler_config, pooling, model.num_scores),
        has_encoder=model.encoder is not None,
        decoder_start_token_id=_start_token(config, model),
        long_rope_threshold=model.long_rope_threshold,
    )


@contextmanager
def _sound_config(path: Path, config: Config | None = None) -> Iterator[None]:
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


def _start_token(config: Config, model: CausalLM) -> int | None:
    token: int | None = config.get("decoder_start_token_id")
    if token is not None and token >= model.vocab_size:
        raise CheckpointError(
            f"config.json: decoder_start_token_id is {token}, and the vocabulary has {model.vocab_size} tokens."
        )
    return token


def _labels(config: Config) -> list[str]:
    named: dict[str, Any] = config.get("id2label", {})
    return [str(named[str(i)]) for i in range(len(named)) if str(i) in named]


def _task(args: EngineArgs, architecture: Architecture) -> str:
    """What the engine does with the model. Raises UnsupportedModelError for what the model has no head for."""
    wanted, tasks = "embedding" if args.task == "embed" else args.task, architecture.tasks
    if wanted == "auto":
        return tasks[0]
    asked = args.override_pooler_config
    of_tokens = wanted == "reward" and "generate" in tasks
    if wanted in tasks or (of_tokens and asked is not None and asked.returned_token_ids):
        return wanted
    remedy = " Rewards of a language model are logits: name their tokens with PoolerConfig(returned_token_ids=[...])."
    raise UnsupportedModelError(
        f"task={wanted!r}: {architecture.name} has no head for it; it serves {', '.join(tasks)}."
        + (remedy if of_tokens else "")
    )


def open_checkpoint(args: EngineArgs) -> Checkpoint:
    """The checkpoint of `args`: its config read, its tensors not yet."""
    files = find_model(args)
    if files.is_gguf:
        gguf = GGUFFile(files.path)
        with _sound_config(files.path):
            architecture = _gguf_architecture(gguf)
            assert architecture.gguf is not None
            shared = shared_config(gguf)
            own = {**architecture.gguf.config(shared, gguf), "architectures": [architecture.name]}
        # llama.cpp turns whole heads unless a file says otherwise, whatever the published config's default is.
        values = {"partial_rotary_factor": 1.0, **shared, **own, **args.hf_overrides}
        return Checkpoint(architecture.config(values), architecture, gguf, files, args.load_format)
    values = {**read_json(files.path / "config.json"), **args.hf_overrides}
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{files.path / 'config.json'} does not say its architecture ('architectures'). Add it with "
            "hf_overrides={'architectures': ['LlamaForCausalLM']} if you know it."
        )
    architecture = find_architecture(names)
    refuse_quantized(values, files.path)
    return Checkpoint(architecture.config(values), architecture, None, files, args.load_format)


def _gguf_architecture(file: GGUFFile) -> Architecture:
    served = [a for a in all_architectures().values() if a.gguf is not None]
    for architecture in served:
        if architecture.gguf and architecture.gguf.arch == file.arch and architecture.gguf.when(file):
            return architecture
    known = {a.gguf.arch for a in served if a.gguf}
    raise UnsupportedModelError(
        f"{file.path} is a GGUF of architecture {shown(file.arch)}, which Octavo does not read."
        f"{did_you_mean(file.arch, known)} It reads {', '.join(sorted(known))}."
    )


def _gguf_tensors(
    file: GGUFFile, architecture: Architecture, config: Config, model: CausalLM
) -> Iterator[tuple[str, TensorSource]]:
    """The file's tensors under published names, undone where llama.cpp changes them."""
    assert architecture.gguf is not None
    model.names = model.names.extended(architecture.gguf.names)
    templates = [name for name, _ in model.names.entries()]
    names = tensor_names(file.arch, len(model.layers), iter(templates), model.names.prefix)
    undo = {_filled(t, i): f for t, f in _undo(architecture) for i in range(len(model.layers))}
    for stored in file.tensors:
        if stored.startswith(("rope_freqs.", "rope_factors_")):  # read with the config
            continue
        module, _, suffix = stored.rpartition(".")
        name = names.get(stored) or (f"{names[module]}.{suffix}" if module in names else stored)
        source = gguf_source(file, stored)
        change = undo.get(name) or undo.get(name.rpartition(".")[0])
        if "{e}" in name:
            for e in range(source.shape[0]):
                yield name.replace("{e}", str(e)), source.item(e)
        elif change is not None:
            yield name, ChangedSource(source, partial(change, c=config))
        else:
            yield name, source


def _undo(architecture: Architecture) -> Iterator[tuple[str, Any]]:
    """What llama.cpp changed, by published template with its alternatives spelled out."""
    assert architecture.gguf is not None
    for key, function in architecture.gguf.undo.items():
        for name, _ in Names({key: key}).entries():
            yield name, function


def _filled(template: str, layer: int) -> str:
    return template.replace("{i}", str(layer))


def _device(args: EngineArgs) -> torch.device:
    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(args.device)
    except RuntimeError as error:
        raise ConfigError(f"device={args.device!r} is unknown; give cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={args.device!r}: PyTorch sees no GPU here. Use device='cpu'.")
    return device


def _max_model_len(args: EngineArgs, config: Config) -> int:
    limit = position_limit(config)
    if args.max_model_len is None:
        return limit or DEFAULT_LENGTH
    if limit is not None and args.max_model_len > limit:
        log.warning(
            "max_model_len=%d is cut to the %d tokens that this model's positions reach", args.max_model_len, limit
        )
        return limit
    return args.max_model_len


def _generation_config(args: EngineArgs, files: ModelFiles) -> dict[str, Any]:
    if args.generation_config == "none":
        return {}
    folder = files.path if args.generation_config == "auto" else Path(args.generation_config)
    path = folder / "generation_config.json"
    if args.generation_config != "auto" and not path.is_file():
        raise ConfigError(f"generation_config={args.generation_config!r}: there is no {path}.")
    return read_json(path) if folder.is_dir() and path.is_file() else {}


def _eos_tokens(
    config: Config, generation: dict[str, Any], tokenizer: Tokenizer | None, vocab_size: int
) -> frozenset[int]:
    """Tokens that end an answer: all that the model's files name and the model can write."""
    found: set[int] = set()
    for value in (config.get("eos_token_id"), generation.get("eos_token_id")):
        found.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(token for token in found if 0 <= token < vocab_size)
