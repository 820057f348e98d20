"""A model ready to run: composed from its config, filled from its checkpoint, with its tokenizer."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from octavo.architectures import Architecture, Config
from octavo.architectures.medusa import MedusaHeads
from octavo.architectures.rope_settings import position_limit
from octavo.architectures.text_config import text_config
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError, shorten
from octavo.files import read_json
from octavo.loading.checkpoint import Checkpoint, open_checkpoint, sound_config
from octavo.loading.cross_encoder_files import pair_template
from octavo.loading.draft_heads import load_head, take_predictor
from octavo.loading.formats import WeightFormat, WeightsBeside
from octavo.loading.head_files import NAMES as HEAD_NAMES
from octavo.loading.head_files import token_heads
from octavo.loading.model_files import ModelFiles
from octavo.loading.model_info import ModelInfo
from octavo.loading.model_state import cache_state
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.loading.packed_copies import packed_copy
from octavo.loading.pooling_config import (
    choose_pooling,
    gguf_pooling,
    matryoshka,
    pooling_tasks,
    published_length,
    score_activation,
)
from octavo.loading.precision import Precision, choose_precision
from octavo.loading.sentence_modules import SentenceModules, sentence_modules
from octavo.loading.slot_filling import HeldWeight
from octavo.loading.weight_loader import load_weights
from octavo.media.model_media import MediaInfo, describe_media
from octavo.media.processor import read_processor_files
from octavo.ops import Backend, device_of_rank, select_backend
from octavo.params import GENERATION_KEYS
from octavo.parts import CausalLM
from octavo.parts.pooled_layers import PooledLayers
from octavo.parts.split import Split, split_model
from octavo.parts.weight_slots import Role, Shard, weight_slots
from octavo.rank_place import RankLink, RankPlace
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")

ALONE, NO_LINK = RankPlace(), RankLink()
DEFAULT_LENGTH = 8192
"""The longest request of a model whose config sets no bound."""


@dataclass(frozen=True)
class Slot:
    """What is left of a weight's slot once it is filled: its shape, where its segments are, and this rank's share."""

    shape: tuple[int, ...]
    segments: Mapping[str, int]
    role: Role
    shard: Shard | None = None
    """What this rank has of it; None for all."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def rows(self, segment: str | None) -> tuple[int, int]:
        """The first row of a segment, and how many it has; all for None."""
        if segment is None:
            return 0, self.shape[0] if self.shape else 1
        names = list(self.segments)
        return sum(self.segments[n] for n in names[: names.index(segment)]), self.segments[segment]


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
    places: dict[str, Slot]
    """The weights of all ranks and stages by path, of which adapters change some."""
    table: str
    """Path of the token table."""
    weights: WeightFormat
    """Where its weights were read from."""
    weight_bytes: int
    """What those weights take that are here."""
    held: dict[str, HeldWeight]
    """Each of them, by path, without heads of other files."""
    medusa: MedusaHeads | None = None
    """Heads that guess its tokens."""
    cache_state: str | None = None
    """All that what it has in caches depends on; None where nobody asks, or it cannot be known."""


def load_model(args: EngineArgs, place: RankPlace = ALONE, link: RankLink = NO_LINK) -> LoadedModel:
    """Find, read and lay out the model of `args`.

    Args:
        args: the engine's options.
        place: which rank's part of the model is wanted; of all ranks, only the output rank has a tokenizer.
        link: how the other ranks are reached, which are met here.

    Raises the errors of octavo.errors for everything that can be wrong with its name, files or options.
    """
    checkpoint = open_checkpoint(args)
    task = _task(args, checkpoint.architecture)
    config, backend = _with_tokens(checkpoint.config, args, checkpoint), select_backend(_device(args, place), args.ops)
    if args.threads is not None:
        backend.set_threads(args.threads)
    precision = choose_precision(args, config, backend, checkpoint.weights)
    with sound_config(checkpoint.files.path, config), torch.device("meta"):
        model = checkpoint.architecture.build(config)
    sentences, weights = SentenceModules(), checkpoint.weights
    if checkpoint.gguf is not None:
        sentences = SentenceModules(gguf_pooling(checkpoint.gguf))
    if task == "embedding":
        model.drop_head()
        if checkpoint.gguf is None:
            sentences, weights = _with_modules(checkpoint, model)
    elif args.speculation is not None and args.speculation.method == "mtp" and task == "generate":
        take_predictor(model, checkpoint)
    media = _media(args, checkpoint, model.hidden_size)
    if media is not None and not media.open_kinds:
        model.drop_media()
    tokenizer = model_tokenizer(args, checkpoint.files, checkpoint.gguf) if place.is_output else None
    places, table = _places(model, precision), next(p for p, part in model.named_modules() if part is model.tokens)
    info = _info(args, checkpoint, model, task, tokenizer, media, sentences)
    if place.size > 1:
        _take_part(model, place, args.speculation is not None and args.speculation.keeps_keys)
        for path, slot in weight_slots(model).items():
            places[path] = replace(places[path], shard=slot.shard)
        backend.join(place, link)
        backend.agree()
    with sound_config(checkpoint.files.path, config):
        # Weights that ranks share, and those beside a model's own, are packed anew.
        is_own = place.size == 1 and weights is checkpoint.weights
        copy = packed_copy(args, checkpoint, task, precision, backend, is_own)
        held = load_weights(model, weights, precision, backend, str(checkpoint.files.path), copy)
    heads, weight_bytes = None, sum(weight.size for weight in held.values())
    if args.speculation is not None and args.speculation.is_of_folder and task == "generate":
        heads, more = load_head(model, args, precision, backend, place)
        weight_bytes += more
    return LoadedModel(
        model=model.eval(),
        config=config,
        architecture=checkpoint.architecture,
        tokenizer=tokenizer,
        precision=precision,
        backend=backend,
        info=info,
        places=places,
        table=table,
        weights=weights,
        weight_bytes=weight_bytes,
        held=held,
        medusa=heads,
        cache_state=None if args.offload is None else cache_state(args, checkpoint, task, precision, backend),
    )


def _device(args: EngineArgs, place: RankPlace) -> str:
    """Where a rank computes. Ray shows each of its ranks the GPU that it may use, and no other."""
    if args.distributed_executor_backend == "ray":
        return args.device
    rank = args.data_parallel_rank * args.num_ranks + place.rank
    return device_of_rank(args.device, rank, args.num_ranks, args.data_parallel_size)


def _with_tokens(config: Config, args: EngineArgs, checkpoint: Checkpoint) -> Config:
    """A classifier's config, with the numbers of the tokens whose logits are its scores, where it names such."""
    names: list[str] = config.get("classifier_from_token", [])
    if not names:
        return config
    tokenizer = model_tokenizer(args, checkpoint.files, checkpoint.gguf)
    if tokenizer is None:
        raise ConfigError("classifier_from_token names tokens, which need the model's tokenizer.")
    ids = [tokenizer.encode(name, add_special_tokens=False) for name in names]
    if wrong := [name for name, found in zip(names, ids, strict=True) if len(found) != 1]:
        raise ConfigError(f"classifier_from_token: {wrong[0][:60]!r} is not one token of this model.")
    return config.replace(classifier_token_ids=[found[0] for found in ids])


def _with_modules(checkpoint: Checkpoint, model: CausalLM) -> tuple[SentenceModules, WeightFormat]:
    """What the folder says of embeddings, whose layers the model then has, and all weights."""
    with torch.device("meta"):
        found = sentence_modules(checkpoint.files.path, model.hidden_size)
        heads = token_heads(checkpoint.files.path, checkpoint.config, model.hidden_size)
    beside = found.weights
    if found.layers:
        model.embed_with(PooledLayers(found.layers), found.names)
    if heads is not None:
        model.token_heads, more = heads
        model.names = model.names.extended(HEAD_NAMES)
        beside = [*beside, *more]
    return found, WeightsBeside(checkpoint.weights, beside) if beside else checkpoint.weights


def _take_part(model: CausalLM, place: RankPlace, embeds_last: bool) -> None:
    """Leave of a model on the meta device what one rank has of it. Raises ConfigError for one that is not divisible.

    `embeds_last`: see CausalLM.keep_stage.
    """
    try:
        if place.num_stages > 1:
            model.keep_stage(place.stage, place.num_stages, embeds_last)
    except ValueError as error:
        raise ConfigError(f"pipeline_parallel_size={place.num_stages}: {error}. Choose a smaller number.") from error
    try:
        if place.tensor_size > 1:
            split_model(model, Split(place.tensor_rank, place.tensor_size))
    except ValueError as error:
        raise ConfigError(f"tensor_parallel_size={place.tensor_size}: {error}. Choose another number.") from error


def _places(model: CausalLM, precision: Precision) -> dict[str, Slot]:
    """Shapes of all weights, before ranks divide them and parts take them."""
    slots = weight_slots(model)
    slots |= model.weight_slots_in(precision.activations, precision.round_towers)  # of a tied head, there is none
    return {path: Slot(slot.shape, dict(slot.segments), slot.role) for path, slot in slots.items()}


def _media(args: EngineArgs, checkpoint: Checkpoint, hidden_size: int) -> MediaInfo | None:
    """The media that the model takes, if it takes any."""
    made = checkpoint.architecture.processor(checkpoint.config)
    if made is None:
        return None
    files = read_processor_files(checkpoint.files.path, checkpoint.config.values)
    if checkpoint.processor_folder is not None and not files.preprocessor:
        files = replace(files, preprocessor=read_processor_files(checkpoint.processor_folder, {}).preprocessor)
    if checkpoint.mmproj is not None:
        files = replace(files, preprocessor=checkpoint.mmproj.preprocessor())
    return describe_media(made, files, args.media_limits, args.mm_processor_kwargs, args.media_io_kwargs, hidden_size)


def _info(
    args: EngineArgs,
    checkpoint: Checkpoint,
    model: CausalLM,
    task: str,
    tokenizer: Tokenizer | None,
    media: MediaInfo | None,
    sentences: SentenceModules,
) -> ModelInfo:
    config, files = checkpoint.config, checkpoint.files
    generation = _generation_config(args, files)
    of_model = model.pooling
    if task in ("classify", "token_classify", "reward"):
        said = score_activation(config)
        of_model = replace(of_model, **{k: v for k, v in vars(said).items() if v is not None})
    return ModelInfo(
        task=task,
        vocab_size=model.vocab_size,
        num_embeddings=model.tokens.num_embeddings,
        max_model_len=_max_model_len(args, text_config(config), model, files),
        eos_token_ids=_eos_tokens(config, generation, tokenizer, model.vocab_size),
        generation_config=generation,
        labels=_labels(config),
        num_scores=model.num_scores,
        pooling=choose_pooling(task, args.override_pooler_config, sentences.pooling, model.num_scores, of_model),
        has_encoder=model.encoder is not None,
        decoder_start_token_id=_start_token(config, model),
        long_rope_threshold=model.long_rope_threshold,
        reads_whole=model.reads_whole,
        serves_adapters=args.enable_lora,
        media=media,
        prompts=sentences.prompts,
        pair_template=pair_template(files.path) if task == "classify" and not files.is_gguf else None,
        pooling_tasks=pooling_tasks(task, model),
        dimensions=matryoshka(config),
    )


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
    tasks = architecture.tasks
    task: str = "embedding" if args.task == "embed" else args.task
    if task == "score":
        task = "classify" if "classify" in tasks else "embedding"
    if task == "auto":
        return tasks[0]
    if task == "pooling":
        task = next((one for one in tasks if one != "generate"), task)
    pooler = args.override_pooler_config
    of_tokens = task == "reward" and "generate" in tasks
    if task in tasks or (of_tokens and pooler is not None and pooler.returned_token_ids):
        return task
    remedy = " Rewards of a language model are logits: name their tokens with PoolerConfig(returned_token_ids=[...])."
    raise UnsupportedModelError(
        f"task={task!r}: {architecture.name} has no head for it; it serves {', '.join(tasks)}."
        + (remedy if of_tokens else "")
    )


def _max_model_len(args: EngineArgs, config: Config, model: CausalLM, files: ModelFiles) -> int:
    limits = [limit for limit in (position_limit(config), model.num_positions) if limit is not None]
    limit = min(limits, default=None)
    if args.max_model_len is None:
        published = None if files.is_gguf else published_length(files.path)
        return min(limit or DEFAULT_LENGTH, published or limit or DEFAULT_LENGTH)
    if limit is not None and args.max_model_len > limit:
        log.warning(
            "max_model_len=%d is cut to the %d tokens that this model's positions reach", args.max_model_len, limit
        )
        return limit
    return args.max_model_len


def _generation_config(args: EngineArgs, files: ModelFiles) -> dict[str, Any]:
    values = _published_generation_config(args, files)
    if unread := args.override_generation_config.keys() - GENERATION_KEYS - values.keys():
        log.warning("override_generation_config: nothing reads %s", shorten(", ".join(sorted(unread))))
    return {**values, **args.override_generation_config}


def _published_generation_config(args: EngineArgs, files: ModelFiles) -> dict[str, Any]:
    if args.generation_config in ("none", "vllm"):
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
    tokens: set[int] = set()
    for value in (config.get("eos_token_id"), text_config(config).get("eos_token_id"), generation.get("eos_token_id")):
        tokens.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        tokens.add(tokenizer.eos_token_id)
    return frozenset(token for token in tokens if 0 <= token < vocab_size)
