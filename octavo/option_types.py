"""Values of options held against the types that their dataclass declares."""

import contextlib
import dataclasses
import functools
import json
import operator
import sys
import types
import typing
from typing import Any

from octavo.errors import ConfigError, did_you_mean, shorten

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a dict"}


def is_finite(value: float) -> bool:
    """Whether float64 has the number, which integers may exceed: `math.isfinite` raises for those."""
    return abs(value) <= sys.float_info.max


_known: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _known:
        _known[cls] = typing.get_type_hints(cls)
    return _known[cls]


def _kinds(annotation: Any) -> tuple[Any, ...]:
    is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Any or kind is types.NoneType:
        return kind is Any or value is None
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    plain = typing.get_origin(kind) or kind
    if plain in (int, float):
        return isinstance(value, (int, plain)) and not isinstance(value, bool)
    if plain is list and isinstance(value, (list, tuple)):
        (inner,) = typing.get_args(kind) or (Any,)
        return all(any(_is_of(one, k) for k in _kinds(inner)) for one in value)
    return not isinstance(plain, type) or isinstance(value, plain)


def _says(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(repr(one) for one in typing.get_args(kind))
    plain = typing.get_origin(kind) or kind
    (inner, *_) = typing.get_args(kind) or (None,)
    if plain is list and inner in WORDS:
        return {str: "a list of texts", int: "a list of whole numbers"}.get(inner, "a list")
    return WORDS.get(plain, f"a {getattr(plain, '__name__', plain)}")


def wrong_type(options: Any, name: str) -> str | None:
    """What is wrong with the type of one field's value; None if nothing is."""
    kinds, value = _kinds(_hints(type(options))[name]), getattr(options, name)
    if any(_is_of(value, kind) for kind in kinds):
        return None
    inner = next((kind for kind in kinds if typing.get_origin(kind) is list), None)
    if inner is not None and isinstance(value, (list, tuple)):
        of = _kinds((typing.get_args(inner) or (Any,))[0])
        bad = next(one for one in value if not any(_is_of(one, kind) for kind in of))
        return f"{name} holds {shorten(repr(bad), 60)}, and must be {_says(inner)}."
    words = dict.fromkeys(_says(kind) for kind in kinds if kind is not types.NoneType)
    if float in kinds and int in kinds:
        words.pop(WORDS[int])
    named = "nothing" if value is None else "a text" if isinstance(value, str) else type(value).__name__
    return f"{name}={shorten(repr(value), 60)} must be {' or '.join(words)}, not {named}."


def check_types(options: Any, error: type[Exception]) -> None:
    """Raises `error` for the first field of a dataclass whose value is of another type than it declares."""
    for f in dataclasses.fields(options):
        if f.init and (wrong := wrong_type(options, f.name)) is not None:
            raise error(wrong)


def without_none(annotation: Any) -> Any:
    """`T` of `T | None`; any other type as it is."""
    if not isinstance(annotation, types.UnionType):
        return annotation
    kinds = [kind for kind in annotation.__args__ if kind is not types.NoneType]
    return functools.reduce(operator.or_, kinds)


def as_mapping(value: Any, name: str) -> dict[str, Any]:
    """A dict, or its JSON text, or key=value,key=value. Raises ConfigError for anything else."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, str) and "=" in value:
        pairs = [pair.partition("=") for pair in value.split(",")]
        value = {key.strip(): int(text) if text.strip().isdecimal() else text.strip() for key, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f'{name}={value!r:.100} must be a dict, or JSON such as {{"image": 1}}.')
    return value


def check_choices(args: Any) -> None:
    """Raises ConfigError for the first field of options whose value is none of its choices."""
    for f in dataclasses.fields(args):
        choices, value = f.metadata["choices"], getattr(args, f.name)
        if choices and value is not None and value not in choices:
            hint = did_you_mean(str(value), choices)
            raise ConfigError(f"{f.name}={shorten(repr(value))} is unknown; choose one of {', '.join(choices)}.{hint}")
