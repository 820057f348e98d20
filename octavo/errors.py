"""The errors that Octavo raises at its boundary. Each message names the input and says what to do next."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class OctavoError(Exception):
    """Any error that Octavo raises on purpose."""


class InvalidRequestError(OctavoError, ValueError):
    """A request (prompt, sampling value) that cannot be run. Nothing else is disturbed."""


class UnknownKeywordError(InvalidRequestError, TypeError):
    """A keyword that a class does not take."""


class ConfigError(OctavoError, ValueError):
    """An engine argument that is unknown, out of range, or impossible on this machine."""


class ModelNotFoundError(OctavoError, FileNotFoundError):
    """A model name that no folder, file or hub answers to."""


class CheckpointError(OctavoError, ValueError):
    """A model whose files are damaged, incomplete, or contradict each other."""


class UnsupportedModelError(CheckpointError):
    """An architecture, or a feature of one, that Octavo does not have."""


class RequestFailedError(OctavoError, RuntimeError):
    """A request that could not be run, though its values seemed sound. Nothing else is disturbed."""


class EngineDeadError(OctavoError, RuntimeError):
    """The engine has stopped and can take no more requests."""


class RankError(EngineDeadError):
    """A rank that other ranks need is gone, or did not come in time, or is out of step with them.

    Args:
        message: names the operation and the rank.
        rank: which is missing, where that is known.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def failure(error: BaseException) -> str:
    """What the request is told whose own code ran into `error`.

    Raises `error` again where it is of the whole process, as an interrupt is, or of the engine. A panic of a library in
    Rust is of the request, though it is no Exception.
    """
    if isinstance(error, EngineDeadError):
        raise error
    if isinstance(error, OctavoError):
        return str(error)
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return f"{type(error).__name__}: {error}"
    raise error


def shorten(value: object, limit: int = 100) -> str:
    """A value's text for a message: at most `limit` characters, all of them printable."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text)} characters)"
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """`" Did you mean a, b?"` for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name[:100], list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""


def names_closest(cls: type[T]) -> type[T]:
    """A dataclass that answers an unknown keyword with the closest known ones. Raises UnknownKeywordError."""
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    make: Any = cls.__init__

    @functools.wraps(make)
    def checked(self: T, *args: Any, **keywords: Any) -> None:
        for name in keywords:
            if name not in known:
                hint = did_you_mean(name, known) or f" It takes {', '.join(known)}."
                raise UnknownKeywordError(f"{cls.__name__} has no {name!r}.{hint}")
        make(self, *args, **keywords)

    cls.__init__ = checked  # type: ignore[assignment,method-assign]
    return cls
