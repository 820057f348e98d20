"""How hidden states are pooled: by the task, the engine's options, and sentence-transformers' files of the model."""

import dataclasses
from pathlib import Path
from typing import Any

from octavo.architectures import Config
from octavo.config import PoolerConfig
from octavo.errors import ConfigError, UnsupportedModelError
from octavo.files import read_json
from octavo.loading.gguf_file import GGUFFile
from octavo.parts import CausalLM

NOTHING = PoolerConfig()

_DEFAULTS = {
    "embedding": PoolerConfig("LAST", normalize=True, softmax=False),
    "classify": PoolerConfig("LAST", normalize=False, softmax=True),
    "token_classify": PoolerConfig("ALL", normalize=False, softmax=True),
    "reward": PoolerConfig("ALL", normalize=False, softmax=False),
}


def choose_pooling(
    task: str, override: PoolerConfig | None, published: PoolerConfig, num_scores: int, of_model: PoolerConfig = NOTHING
) -> PoolerConfig:
    """The pooling of an engine, with nothing left open.

    Args:
        task: embedding, classify, token_classify or reward; a generating engine pools as for embedding.
        override: the engine's override_pooler_config.
        published: what the model's files say of embeddings.
        num_scores: how many scores a row has.
        of_model: what the architecture and the config say.

    Raises ConfigError for a configuration that this model cannot follow.
    """
    task = "embedding" if task == "generate" else task
    wishes = [override or PoolerConfig(), published if task == "embedding" else NOTHING, of_model, _DEFAULTS[task]]
    chosen = PoolerConfig(
        **{
            f.name: next((v for w in wishes if (v := getattr(w, f.name)) is not None), None)
            for f in dataclasses.fields(PoolerConfig)
        }
    )
    if chosen.pooling_type == "STEP" and chosen.step_tag_id is None:
        raise ConfigError("pooling_type='STEP' needs step_tag_id, the token at whose places steps end.")
    if (returned := chosen.returned_token_ids) is not None:
        if task == "embedding":
            raise ConfigError("returned_token_ids chooses among scores; it needs task='reward' or 'classify'.")
        if wrong := [i for i in returned if not 0 <= i < num_scores]:
            raise ConfigError(f"returned_token_ids holds {wrong[0]}; this model has 0 to {num_scores - 1}.")
    return chosen


def score_activation(config: Config) -> PoolerConfig:
    """What a classifier's config says of its scores, as transformers and sentence-transformers read it.

    Raises UnsupportedModelError for a function that is not known.
    """
    section: dict[str, Any] = config.get("sentence_transformers") or {}
    name = str(section.get("activation_fn") or config.get("sbert_ce_default_activation_function") or "")
    kind = config.get("problem_type")
    if name:
        function = name.rpartition(".")[2]
        if function not in ("Identity", "Sigmoid"):
            raise UnsupportedModelError(f"config.json: {name[:80]!r} of scores is not known; Identity and Sigmoid are.")
        return PoolerConfig(softmax=function == "Sigmoid", multi_label=function == "Sigmoid")
    if kind == "regression":
        return PoolerConfig(softmax=False)
    return PoolerConfig(multi_label=True) if kind == "multi_label_classification" else NOTHING


def pooling_tasks(task: str, model: CausalLM) -> list[str]:
    """What a request to pool may ask for by PoolingParams.task, in vLLM's names; the usual one first."""
    if task in ("classify", "token_classify", "reward"):
        return ["classify" if task == "classify" else "token_classify"]
    heads = model.token_heads
    more = ["token_classify", "embed&token_classify"] if heads is not None and heads.sparse is not None else []
    return ["embed", "token_embed", *more]


def matryoshka(config: Config) -> list[int] | None:
    """To how many values embeddings may be cut, as vLLM reads a config; empty for any number, None for none."""
    given: list[int] = config.get("matryoshka_dimensions", [])
    return given or ([] if config.get("is_matryoshka", False) else None)


GGUF_TYPES = {1: "MEAN", 2: "CLS", 3: "LAST"}
"""llama.cpp's numbers."""


def gguf_pooling(file: GGUFFile) -> PoolerConfig:
    """The pooling of a GGUF model, with None for what the file does not say."""
    return PoolerConfig(GGUF_TYPES.get(file.value("pooling_type", 0)))


def published_length(folder: Path) -> int | None:
    """The longest text that sentence-transformers gives the model, in tokens; None where its files do not say.

    Raises CheckpointError for damaged files.
    """
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length") if path.is_file() else None
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
