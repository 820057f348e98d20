"""Where a conversation is shown."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from octavo.cli.chat.chat_model import Piece
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Text

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= {ord("\r"): "", 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def harmless(text: str) -> str:
    """Text without what a terminal would obey: models, and who writes for them, could move the cursor or worse."""
    return text.translate(_CONTROLS)


class View(Protocol):
    """What shows answers and remarks."""

    shows_thoughts: bool
    """Whether what a model thinks is shown, or only that it does."""
    has_failed: bool
    """Whether an error has been told."""

    def working(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Shows that something goes on, until the block ends."""
        ...

    def begin(self) -> None:
        """An answer is asked for."""
        ...

    def show(self, piece: Piece) -> None:
        """A piece of it."""
        ...

    def end(self, remark: str = "", numbers: str = "") -> None:
        """It has ended: what there is to say about that, and what it took."""
        ...

    def tell(self, text: str) -> None:
        """What a command has to say."""
        ...

    def note(self, text: str) -> None:
        """What has been done."""
        ...

    def fail(self, text: str) -> None:
        """An error."""
        ...


def plain(piece: Piece) -> str:
    """A piece of an answer as it is printed; thoughts and calls are left out."""
    match piece:
        case Text(text):
            return text
        case CallBroken(text, _):
            return text
    return ""


class PlainView:
    """For pipes and files: answers and nothing else on standard output, remarks on standard error."""

    shows_thoughts = False

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._clean: Callable[[str], str] = harmless if self._out.isatty() else str
        self.has_failed = False
        self._calls = ""
        self._at_line_begin = True

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        yield

    def begin(self) -> None:
        self._calls, self._at_line_begin = "", True

    def show(self, piece: Piece) -> None:
        if text := plain(piece):
            self._out.write(self._clean(text))
            self._out.flush()
            self._at_line_begin = text.endswith("\n")
        match piece:
            case CallBegin(name, _):
                self._calls += f" {name}("
            case CallArguments(text):
                self._calls += text
            case CallEnd():
                self._calls += ")"
            case CallBroken():
                self._calls = ""

    def end(self, remark: str = "", numbers: str = "") -> None:
        if not self._at_line_begin:
            self._out.write("\n")
        self._out.flush()
        if self._calls:
            self._say(f"the model calls{self._calls}")
        if remark:
            self._say(remark)

    def tell(self, text: str) -> None:
        self._out.write(self._clean(text) + "\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """Nobody is there who would not know."""

    def fail(self, text: str) -> None:
        self.has_failed = True
        self._say(text)

    def _say(self, text: str) -> None:
        print(f"octavo: {harmless(text)}", file=self._err, flush=True)
