"""Sampling values as people type them. Which there are, and their bounds, is what SamplingParams says."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidRequestError, did_you_mean
from octavo.option_types import without_none
from octavo.params import SamplingParams, range_text

NOT_HERE = ("n", "prompt_logprobs")
"""What asks for more than one answer, or for what is not shown."""
VALUES = {f.name: f for f in dataclasses.fields(SamplingParams) if f.metadata.get("http") and f.name not in NOT_HERE}
"""Those that a conversation may set."""
SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
UNSET = ("default", "unset")
"""Words for the model's own value."""
_TYPES = typing.get_type_hints(SamplingParams)


def checked(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> SamplingParams:
    """The values as SamplingParams. Raises InvalidRequestError as they do."""
    return SamplingParams(**{"max_tokens": None, **defaults, **values})


def with_value(values: Mapping[str, Any], text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what `text` says, such as `temperature 0.7`, `stop ###` or `seed default`.

    Raises InvalidRequestError for an unknown name, and for a value that SamplingParams refuses.
    """
    name, _, value = text.strip().partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if name not in VALUES:
        raise InvalidRequestError(
            f"there is no sampling value {name[:60]!r}.{did_you_mean(name, VALUES)} /set lists them."
        )
    if not value:
        raise InvalidRequestError(f"give {name} a value: /set {name} VALUE ({bounds(name)}), or default.")
    rest = {key: old for key, old in values.items() if key != name}
    if value.lower() in UNSET:
        return rest
    changed = {**rest, name: _parsed(name, value)}
    try:
        checked(changed, defaults)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"/set {name}: {error}") from error
    return changed


def _parsed(name: str, text: str) -> Any:
    """The value that is meant; text where it is none of the value's kind, which SamplingParams then says."""
    annotation = _TYPES[name]
    kind = without_none(annotation)
    kinds = typing.get_args(kind) or (kind,)
    is_list = typing.get_origin(kind) is list or any(typing.get_origin(k) is list for k in kinds)
    if text.lower() == "none" and annotation != kind:
        return None
    if kind is bool:
        if text.lower() not in SWITCH:
            raise InvalidRequestError(f"/set {name} {text[:40]}: it is on or off.")
        return SWITCH[text.lower()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if is_list:
        takes_text = any("str" in str(k) for k in (kind, *kinds))
        if takes_text and not isinstance(value, (list, str)):
            value = text
        return value if isinstance(value, list) else [value]
    if typing.get_origin(kind) is dict and not isinstance(value, dict):
        raise InvalidRequestError(f'/set {name} {text[:40]}: it is JSON, such as {{"17": -100}}.')
    return value


def bounds(name: str) -> str:
    """What a value may be."""
    field, kind = VALUES[name], without_none(_TYPES[name])
    text = range_text(field.metadata["low"], field.metadata["above"], field.metadata["high"])
    if kind is bool:
        return "on or off"
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return f"{number}, {text}" if text else number
    if typing.get_origin(kind) is dict:
        return "JSON"
    if typing.get_origin(kind) is list and int in typing.get_args(kind):
        return "whole numbers, as a JSON list"
    return "text, or a list as JSON"


def listing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """All values, one a line: what they are, may be, and do. Those that the user has set are marked."""
    lines = []
    for name, field in VALUES.items():
        value = values.get(name, defaults.get(name, None if name == "max_tokens" else field.default))
        shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else "-" if value is None else value
        mark = "*" if name in values else " "
        lines.append(f"{mark} {name:32}{shown!s:<10}  {field.metadata['help']} ({bounds(name)})")
    return "\n".join(lines)
