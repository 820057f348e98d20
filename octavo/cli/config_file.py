"""`--config FILE.yaml`: flags from a file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from octavo.errors import CheckpointError, ConfigError, did_you_mean, shorten
from octavo.files import open_file

LARGEST = 1 << 20
"""Bytes of such a file."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML of plain values, without references: few bytes of these can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read")
        return super().compose_node(parent, index)


def read_config_file(name: str) -> dict[str, Any]:
    """The file's options by the flags' names, without hyphens before. Raises ConfigError, naming the file."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--config {shorten(name)}: the file's name must end in .yaml or .yml.")
    try:
        with open_file(path) as file:
            data = file.read(LARGEST + 1)
    except CheckpointError as error:
        raise ConfigError(f"--config {shorten(name)} cannot be read: is there such a file?") from error
    if len(data) > LARGEST:
        raise ConfigError(f"--config {shorten(name)} is larger than the {LARGEST >> 20} MiB that are read of it.")
    try:
        values = yaml.load(data, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {shorten(name)} is not readable YAML: {shorten(error, 300)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"--config {shorten(name)} must have lines such as `port: 8000`.")
    return {key.lstrip("-").replace("_", "-"): value for key, value in values.items()}


def flags_of(values: Mapping[str, Any], known: Mapping[str, Any], given: Iterable[str], name: str) -> list[str]:
    """The file's options as flags, but those that the command line gives too.

    Args:
        values: what `read_config_file` gives.
        known: all spellings of all flags, with what they set.
        given: the flags of the command line.
        name: the file's, for messages.

    Raises ConfigError for an option that is no flag of the command.
    """
    flags = list[str]()
    set_already = {id(known[flag]) for flag in given if flag in known}
    for key, value in values.items():
        flag = f"--{key}"
        if flag not in known:
            raise ConfigError(f"--config {shorten(name)}: {shorten(key)!r} is unknown.{did_you_mean(flag, known)}")
        action = known[flag]
        if id(action) in set_already or value is None:
            continue
        if isinstance(value, bool):
            off = f"--no-{key}"
            flags += [flag] if value and action.nargs == 0 else []
            flags += [off] if not value and off in known else []
            flags += [f"{flag}={json.dumps(value)}"] if action.nargs != 0 else []
        elif isinstance(value, list) and action.nargs in ("+", "*"):
            flags += [flag, *(_text(one) for one in value)] if value else []
        elif isinstance(value, list) and type(action).__name__ == "_AppendAction":
            flags += [f"{flag}={_text(one)}" for one in value]
        else:
            flags.append(f"{flag}={_text(value)}")
    return flags


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
