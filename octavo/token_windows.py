"""How far back tokens see: what blocks a scheduler keeps, and what keys attention reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Tokens see those of their own chunk: positions are divided into chunks of `size` from the first on (Llama 4)."""

    size: int


Window = int | Chunk
"""How many of the last tokens, itself included, a token sees; or the chunk of those that it sees."""


def first_seen(window: Window | None, position: int) -> int:
    """The first position that the token at `position` sees; None for all from the beginning."""
    if window is None:
        return 0
    if isinstance(window, Chunk):
        return position // window.size * window.size
    return max(0, position - window + 1)


def most_seen(window: Window) -> int:
    """How many tokens one sees at most."""
    return window.size if isinstance(window, Chunk) else window
