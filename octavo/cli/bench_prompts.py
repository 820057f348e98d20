"""Prompts of files, as vLLM's measurements take them."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, ConfigError, shorten
from octavo.files import open_file, read_json_value

FILE_MAX = 2 << 30
"""Bytes of a file of prompts."""


def file_prompts(namespace: argparse.Namespace) -> list[tuple[str, str | None]] | None:
    """As many prompts as are asked for, each with the answer that the file has; None where they are random.

    A file with fewer is read from its beginning again. Raises ConfigError for what is no such file.
    """
    kind, path = namespace.dataset_name, namespace.dataset_path
    if kind == "random":
        if path is not None:
            raise ConfigError("--dataset-path needs --dataset-name sharegpt or custom.")
        return None
    if path is None:
        raise ConfigError(f"--dataset-name {kind} needs its file, --dataset-path.")
    try:
        found = _sharegpt(Path(path)) if kind == "sharegpt" else _custom(Path(path))
    except CheckpointError as error:
        raise ConfigError(f"--dataset-path: {error}") from error
    if not found:
        raise ConfigError(f"--dataset-path {shorten(path)} has no prompts such as --dataset-name {kind} has.")
    return list(itertools.islice(itertools.cycle(found), namespace.num_prompts))


def _sharegpt(path: Path) -> list[tuple[str, str | None]]:
    """The first turns of conversations, of two turns at least."""
    value, found = read_json_value(path, FILE_MAX), list[tuple[str, str | None]]()
    for one in value if isinstance(value, list) else []:
        turns = one.get("conversations") if isinstance(one, dict) else None
        texts = [str(turn.get("value") or "") for turn in turns or [] if isinstance(turn, dict)]
        if len(texts) > 1 and texts[0] and texts[1]:
            found.append((texts[0], texts[1]))
    return found


def _custom(path: Path) -> list[tuple[str, str | None]]:
    found = list[tuple[str, str | None]]()
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append((_prompt(line, number), None))
    return found


def _prompt(line: bytes, number: int) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise CheckpointError(f'line {number} has no prompt: it must be JSON such as {{"prompt": "a text"}}.')
    return prompt
