"""Kinds of values that config.json's keys hold, by which they are checked when they are read."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.errors import CheckpointError
from octavo.ops import ACTIVATIONS

SHOWN = 60
"""Characters of a wrong value that its error shows."""


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def check(key: str, value: Any, kind: Kind | None) -> Any:
    """`value`, which the config has under `key`. Raises CheckpointError where it is not of `kind`; None allows all."""
    if kind is None or kind.accepts(value):
        return value
    shown = repr(value)
    shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
    raise CheckpointError(f"config.json: {key} is {shown}, and must be {kind.expected}.")


def is_integer(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN is neither


def integer(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda v: is_integer(v, low, high))


def number(low: float, high: float) -> Kind:
    return Kind(f"a number from {low:g} to {high:g}", lambda v: is_number(v, low, high))


def integers(low: int, high: int) -> Kind:
    return Kind(
        f"a list of whole numbers from {low} to {high}",
        lambda v: isinstance(v, list) and all(is_integer(item, low, high) for item in v),
    )


def numbers(low: float, high: float, count: int | None = None) -> Kind:
    return Kind(
        f"a list of {'' if count is None else f'{count} '}numbers from {low:g} to {high:g}",
        lambda v: isinstance(v, list) and all(is_number(n, low, high) for n in v) and count in (None, len(v)),
    )


def one_of(*names: str) -> Kind:
    return Kind("one of " + ", ".join(names), lambda v: isinstance(v, str) and v in names)


def numbered(begin: str) -> Kind:
    """A text that ends in a number."""
    return Kind(
        f"{begin} and a number from 1 to 9999",
        lambda v: isinstance(v, str) and re.fullmatch(re.escape(begin) + "[1-9][0-9]{0,3}", v) is not None,
    )


def either(first: Kind, second: Kind) -> Kind:
    return Kind(f"{first.expected}, or {second.expected}", lambda v: first.accepts(v) or second.accepts(v))


MAX_LAYERS, MAX_COUNT, MAX_SIZE, MAX_LENGTH = 1000, 1 << 16, 1 << 24, 1 << 24
POSITIVE = 1e-9

LAYERS, COUNT, SIZE, LENGTH = (integer(1, high) for high in (MAX_LAYERS, MAX_COUNT, MAX_SIZE, MAX_LENGTH))
COUNT_OR_NONE = integer(0, MAX_COUNT)
WINDOW = integer(0, MAX_LENGTH)
TOKEN = integer(0, MAX_SIZE)
TOKENS = either(integer(-1, MAX_LENGTH), integers(-1, MAX_LENGTH))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("a text", lambda v: isinstance(v, str))
EPSILON = number(0.0, 1.0)
SCALE = number(-1e6, 1e6)
FACTOR = number(POSITIVE, 1e6)
"""Of a multiplier, a divisor or a limit."""
BASE = number(1.0001, 1e15)
SHARE = number(POSITIVE, 1.0)
VERSION = Kind("a version such as 2.6", lambda v: re.fullmatch(r"\d{1,3}(\.\d{1,3})?", str(v)) is not None)
OBJECT = Kind("an object", lambda v: isinstance(v, dict))
OBJECTS = Kind("a list of objects", lambda v: isinstance(v, list) and all(isinstance(item, dict) for item in v))
INDICES = integers(0, MAX_LAYERS)
GRIDS = Kind(
    "a list of pairs of whole numbers",
    lambda v: (
        isinstance(v, list)
        and 0 < len(v) <= MAX_COUNT
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(is_integer(n, 1, MAX_COUNT) for n in pair) for pair in v
        )
    ),
)
INFINITY = {"__float__": "Infinity"}
"""As transformers 5 writes it, since JSON has none."""
LIMITS = Kind(
    "a pair of numbers that are not negative",
    lambda v: isinstance(v, list) and len(v) == 2 and all(is_number(n, 0.0, math.inf) or n == INFINITY for n in v),
)
KINDS = Kind("a list of texts", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
ACTIVATION = one_of(*ACTIVATIONS, "swiglu", "fatrelu", "xielu")
FACTORS = numbers(POSITIVE, 1e6)
