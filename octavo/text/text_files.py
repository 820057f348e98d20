"""Text files as parts of a conversation."""

import re

from octavo.errors import shorten


def fenced(name: str, text: str) -> str:
    """A file's text between lines of backquotes, more of them than it has itself, under its name."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{shorten(name, 200)}:\n{fence}\n{text.rstrip()}\n{fence}"
