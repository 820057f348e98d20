"""Small files of a model folder."""

import json
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; the model's folder is incomplete.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value
