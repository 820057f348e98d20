"""Checks that the parameters of requests share."""

from typing import Any

from octavo.errors import InvalidRequestError
from octavo.option_types import is_finite

SIDES = ("left", "right")
"""At which end of a prompt what is too much is taken away."""


def reject(message: str) -> None:
    raise InvalidRequestError(message)


def in_range(value: Any, kind: type[int | float], low: float | None, above: float | None, high: float | None) -> bool:
    return (
        isinstance(value, (int, kind))
        and not isinstance(value, bool)
        and (kind is int or is_finite(value))
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
    )


def check_range(
    name: str,
    value: Any,
    kind: type[int | float],
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> None:
    if not in_range(value, kind, low, above, high):
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            reject(f"{name}={value!r} must be a {'whole number' if kind is int else 'number'}.")
        if kind is float and not is_finite(value):
            reject(f"{name}={value!r:.60} is out of range: it must be finite.")
        reject(f"{name}={value!r} is out of range: it must be {range_text(low, above, high)}.")


def range_text(low: float | None, above: float | None, high: float | None) -> str:
    """What a number must be; nothing where it may be any."""
    bounds = (("above", above), ("at least", low), ("at most", high))
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def check_kept(tokens: int | None) -> None:
    if tokens == 0:
        reject("truncate_prompt_tokens=0 must be -1 or at least 1.")


def check_side(side: Any) -> None:
    if side is not None and side not in SIDES:
        reject(f"truncation_side={side!r:.60} must be left or right.")
