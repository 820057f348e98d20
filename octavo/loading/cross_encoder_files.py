"""What sentence-transformers' files of a cross-encoder say of how it reads pairs."""

from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.files import read_json, read_json_value
from octavo.text.pair_template import PairTemplate

FIXED = ("tools", "tokenize")
"""Settings of a template that pairs of texts leave no room for."""


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def pair_template(folder: Path) -> PairTemplate | None:
    """The template of a folder whose only module reads messages (since version 6); None for all others.

    Raises CheckpointError for damaged files.
    """
    whole = _read(folder / "config_sentence_transformers.json")
    path = folder / "sentence_bert_config.json"
    module, listed = _read(path), folder / "modules.json"
    kinds = module.get("modality_config")
    if (
        whole.get("model_type") != "CrossEncoder"
        or module.get("transformer_task") != "sequence-classification"
        or not isinstance(kinds, dict)
        or "message" not in kinds
        or not _is_alone(listed)
    ):
        return None
    settings = module.get("processing_kwargs") or {}
    own = (settings.get("chat_template") or {}) if isinstance(settings, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("chat_template", ""), str) or own.keys() & set(FIXED):
        raise CheckpointError(
            f"{path}: processing_kwargs.chat_template must be an object with a template's name and its variables, and "
            f"without {' and '.join(FIXED)}."
        )
    left_out = ("chat_template", "restore_suffix")
    variables = {str(key): value for key, value in own.items() if key not in left_out}
    return PairTemplate(name=own.get("chat_template") or "default", variables=variables)


def _is_alone(path: Path) -> bool:
    """Whether the folder has one module, which is the model itself."""
    listed = read_json_value(path) if path.is_file() else None
    if isinstance(listed, dict):
        listed = listed.get("modules")
    first = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    return isinstance(first, dict) and str(first.get("type")).endswith(".Transformer") and not first.get("path")
