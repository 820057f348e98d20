"""What is typed, as messages: lines that go on, blocks between triple quotes."""

import re
from collections.abc import Callable
from typing import Protocol, TextIO

QUOTES = '"""'
_BLOCK = re.compile(r'\s*(/\w+\s+)?"""')
"""A block begins a message, or the argument of a command."""


def goes_on(text: str) -> bool:
    """Whether more lines belong to what was typed so far."""
    block = _BLOCK.match(text)
    if block is not None:
        return not text[block.end() :].rstrip().endswith(QUOTES)
    return text.endswith("\\")


def message_of(text: str) -> str:
    """The message that was typed, without the quotes around it."""
    block = _BLOCK.match(text)
    if block is None:
        return text.rstrip()
    return (block[1] or "") + text[block.end() :].rstrip().removesuffix(QUOTES).strip("\n")


class Reader(Protocol):
    """What gives messages."""

    def read(self) -> str | None:
        """The next one; None at the end. Raises KeyboardInterrupt for Ctrl-C."""
        ...


class LineReader:
    """Messages of a pipe, or of a terminal that can do no more.

    Args:
        file: where lines come from.
        prompt: called before each, with whether it goes on a message.
    """

    def __init__(self, file: TextIO, prompt: Callable[[bool], None] = lambda goes_on: None) -> None:
        self._file, self._prompt = file, prompt

    def read(self) -> str | None:
        text = ""
        self._prompt(False)
        while True:
            line = self._file.readline()
            if not line:
                return message_of(text) if text.strip() else None
            text += line.rstrip("\r\n")
            if not goes_on(text):
                return message_of(text)
            # Within a block a backslash is text, and elsewhere what says that a line goes on.
            text = (text if _BLOCK.match(text) else text.removesuffix("\\")) + "\n"
            self._prompt(True)
