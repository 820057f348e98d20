"""Regular expressions of checkpoints, which say what holds for which modules. They come from outside."""

from octavo.errors import CheckpointError, shorten

LENGTH_MAX = 1000
SECONDS_MAX = 1.0
"""For one name: more than any sound expression takes, and an end for one that backtracks for ever."""


def matches(pattern: str, module: str) -> bool:
    """Whether a module's name begins with a match. Raises CheckpointError for an expression that is none."""
    if not isinstance(pattern, str) or len(pattern) > LENGTH_MAX:
        raise CheckpointError(f"{shorten(pattern, 200)!r} of the quantization's settings is no expression of names.")
    import regex

    try:
        return regex.match(pattern, module, timeout=SECONDS_MAX) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"the regular expression {shorten(pattern, 200)!r} of the quantization's settings cannot be used "
            f"({shorten(error, 100)})."
        ) from error
