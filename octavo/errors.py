"""The errors that Octavo raises at its boundary. Each message names the input and says what to do next."""

import difflib
from collections.abc import Iterable


class OctavoError(Exception):
    """Any error that Octavo raises on purpose."""


class InvalidRequestError(OctavoError, ValueError):
    """A request (prompt, sampling value) that cannot be run. Nothing else is disturbed."""


class ConfigError(OctavoError, ValueError):
    """An engine argument that is unknown, out of range, or impossible on this machine."""


class ModelNotFoundError(OctavoError, FileNotFoundError):
    """A model name that no folder, file or hub answers to."""


class CheckpointError(OctavoError, ValueError):
    """A model whose files are damaged, incomplete, or contradict each other."""


class UnsupportedModelError(CheckpointError):
    """An architecture, or a feature of one, that Octavo does not have."""


class EngineDeadError(OctavoError, RuntimeError):
    """The engine has stopped and can take no more requests."""


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """`" Did you mean a, b?"` for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(close)}?" if close else ""
