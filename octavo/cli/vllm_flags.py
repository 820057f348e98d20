"""Flags of vLLM's that Octavo has not: taken, and said to have no effect, or refused with a reason."""

import argparse
import json
import logging
from collections.abc import Container, Iterable
from typing import Any

from octavo.errors import ConfigError
from octavo.vllm_options import VllmOption, vllm_options

log = logging.getLogger("octavo")

OTHERS = "vllm_flags"
"""Where a namespace has those that were given."""


class Taken(argparse.Action):
    """Keeps a flag's value beside its option; `--no-x` of a switch is False."""

    def __init__(self, option_strings: list[str], dest: str, option: VllmOption, **more: Any) -> None:
        super().__init__(option_strings, dest, **more)
        self.option = option

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        value = values
        if self.option.kind == "switch":
            value = not str(option_string).startswith("--no-")
        elif self.option.kind == "list" and len(values) == 1:
            value = _value(values[0])
        elif self.option.kind != "list":
            value = _value(values)
        setattr(namespace, OTHERS, [*getattr(namespace, OTHERS, []), (self.option, value)])


def _value(text: str) -> Any:
    """What a flag's text says: JSON, `None`, or a text."""
    if text == "None":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def add_vllm_flags(
    parser: argparse.ArgumentParser, of: Container[str] = ("engine", "older"), action: type[Taken] = Taken
) -> None:
    """Flags for vLLM's options that the parser has none for. They are not in its help; `action` keeps their values."""
    add_table_flags(parser, (option for option in vllm_options().values() if option.of in of), action)


def add_table_flags(
    parser: argparse.ArgumentParser, options: Iterable[VllmOption], action: type[Taken] = Taken
) -> None:
    """Flags for these options, those aside that the parser has already; `action` keeps their values."""
    for option in options:
        names = [option.flag, *option.shorts]
        if option.kind == "switch":
            names.append("--no-" + option.flag[2:])
        free = [name for name in names if name not in parser._option_string_actions]
        if option.flag in free:
            nargs: Any = {"switch": 0, "list": "*"}.get(option.kind)
            parser.add_argument(
                *free, action=action, option=option, nargs=nargs, dest=option.name, default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )  # fmt: skip


def say_vllm_flags(namespace: argparse.Namespace) -> None:
    """Say once of each flag that was given why it has no effect. Raises ConfigError for one that cannot be honoured."""
    said = set[str]()
    for option, value in getattr(namespace, OTHERS, []):
        try:
            note = option.note(value, option.flag)
        except ConfigError as error:
            shown = option.flag if option.kind == "switch" else f"{option.flag} {value if value is not None else ''}"
            raise ConfigError(f"{shown.strip()} is not available: {option.why}.") from error
        if note not in said:
            log.warning("%s", note)
        said.add(note)
