"""How hidden states are pooled: by the task, the engine's options, and sentence-transformers' files of the model."""

import dataclasses
from pathlib import Path
from typing import Any

from octavo.architectures import Config
from octavo.config import PoolerConfig
from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.files import read_json, read_json_value

_TYPES = {
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_max_tokens": "MAX",
    "pooling_mode_mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "pooling_mode_weightedmean_tokens": "WEIGHTED_MEAN",
}

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


def pooling_config(folder: Path) -> PoolerConfig:
    """The folder's pooling, with None for what it does not say.

    Raises CheckpointError for damaged files or a path out of the folder, UnsupportedModelError for other poolings.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return PoolerConfig()
    try:
        modules: list[dict[str, Any]] = read_json_value(path)
        kinds = [str(m["type"]).rpartition(".")[2] for m in modules]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a list of sentence-transformers modules: {error}") from error
    config = PoolerConfig(normalize="Normalize" in kinds)
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Pooling":
            config.pooling_type = _pooling_type(folder, str(module.get("path", "")))
    return config


def _pooling_type(folder: Path, relative: str) -> str:
    path = (folder / relative / "config.json").absolute()
    if not Path(relative).parts or ".." in Path(relative).parts or not path.is_relative_to(folder.absolute()):
        raise CheckpointError(f"{folder / 'modules.json'} names {relative!r}, which is not a folder of its own.")
    chosen = [key for key, on in read_json(path).items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in _TYPES:
        raise UnsupportedModelError(
            f"{path} asks for {' and '.join(chosen) or 'no pooling'}; one of {', '.join(_TYPES)} is served. "
            "Choose one with override_pooler_config."
        )
    return _TYPES[chosen[0]]


def published_length(folder: Path) -> int | None:
    """The longest text that sentence-transformers gives the model, in tokens; None where its files do not say.

    Raises CheckpointError for damaged files.
    """
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length") if path.is_file() else None
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
