"""How a model's own files want embeddings pooled: sentence-transformers' modules.json and its pooling config."""

from pathlib import Path
from typing import Any

from octavo.config import PoolerConfig
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.files import read_json, read_json_value

_TYPES = {
    "pooling_mode_lasttoken": "LAST",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_cls_token": "CLS",
}


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
