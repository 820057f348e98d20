"""How hidden states are pooled: by the task, the engine's options, and sentence-transformers' files of the model."""

import dataclasses
from pathlib import Path
from typing import Any

from octavo.config import PoolerConfig
from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.files import read_json, read_json_value

_TYPES = {
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
}

_DEFAULTS = {
    "embedding": PoolerConfig("LAST", normalize=True, softmax=False),
    "classify": PoolerConfig("LAST", normalize=False, softmax=True),
    "reward": PoolerConfig("ALL", normalize=False, softmax=False),
}


def choose_pooling(task: str, override: PoolerConfig | None, published: PoolerConfig, num_scores: int) -> PoolerConfig:
    """The pooling of an engine, with nothing left open.

    Args:
        task: embedding, classify or reward; a generating engine pools as for embedding.
        override: the engine's override_pooler_config.
        published: what the model's files say of embeddings.
        num_scores: how many scores a row has.

    Raises ConfigError for a configuration that this model cannot follow.
    """
    task = "embedding" if task == "generate" else task
    wishes = [override or PoolerConfig(), published if task == "embedding" else PoolerConfig(), _DEFAULTS[task]]
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
            f"{path} asks for {' and '.join(chosen) or 'no pooling'}; last token, mean and first token are served. "
            "Choose one with override_pooler_config."
        )
    return _TYPES[chosen[0]]
