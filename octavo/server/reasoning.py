"""What a model thinks before it answers, told apart from the answer."""

from collections.abc import Callable, Mapping
from typing import Any

from octavo.server.answer_events import Event, Text, Thought
from octavo.server.json_scanner import WHITESPACE
from octavo.server.markers import Markers, visible
from octavo.server.reasoning_formats import ReasoningFormat
from octavo.server.text_reader import Reading, TextReader

SWITCHES = ("enable_thinking", "thinking")
"""Variables of chat templates that say whether the model is to think."""


def is_off(format: ReasoningFormat, prompt: str, variables: Mapping[str, Any]) -> bool:
    """Whether there is to be no thought: the prompt has ended one, or the template was told so."""
    end = prompt.rstrip()
    told = any(variables.get(name) is False for name in SWITCHES)
    return end.endswith(format.closings) or (told and not end.endswith(format.openings))


def begins_inside(format: ReasoningFormat, prompt: str, variables: Mapping[str, Any]) -> bool:
    """Whether the answer begins inside a thought."""
    return prompt.rstrip().endswith(format.openings) or (format.implied and not is_off(format, prompt, variables))


class ReasoningParser:
    """Takes a model's text piece by piece, and gives what is thought; what follows is text, its markers with it.

    An answer thinks where it begins with the opening marker, or where the prompt has ended with it; the thought ends
    with the closing marker, where calls of tools begin, or with the answer. White space around markers belongs to them.

    Args:
        format: how the model writes a thought.
        prompt: the end of it decides whether the answer begins inside a thought.
        variables: of the chat template; they may say that there is no thought.
    """

    def __init__(self, format: ReasoningFormat, prompt: str, variables: Mapping[str, Any] | None = None) -> None:
        self.format = format
        self._begun = begins_inside(format, prompt, variables or {})
        self._reader, self._events = TextReader(), list[Event]()
        self._work = self._run()

    def feed(self, text: str, finished: bool) -> list[Event]:
        """What is certain now: Thought and Text, in which markers of other formats are left as they are."""
        self._reader.add(text, finished)
        next(self._work, None)
        events, self._events = self._events, []
        return events

    def _run(self) -> Reading[None]:
        reader, format = self._reader, self.format
        opening, before = Markers(*format.openings), Markers(*format.around[:1])
        reader.keep()
        yield from reader.skip(WHITESPACE)
        has_opened = yield from reader.sees(opening, read=True)
        if has_opened is not None or self._begun:
            reader.kept = None
            yield from self._thought()
        elif (yield from reader.sees(before)) is None:
            self._text("".join(reader.kept or ()))
        reader.kept = None
        if (yield from reader.sees(before, read=True)) is not None:
            yield from self._inside()
        yield from reader.until(Markers(), self._text)

    def _thought(self) -> Reading[None]:
        """A thought, behind its opening marker, with the marker that ends it."""
        reader, format = self._reader, self.format
        closing = Markers(*format.closings, *format.interrupted_by)
        told = _Trimmed(self._think)
        write: Callable[[str], None] = self._text if format.in_content else told.add
        if format.in_content:
            self._text(format.openings[0])
        if format.label:
            yield from reader.skip(WHITESPACE)
            yield from reader.sees(Markers(format.label), read=True)
        found = yield from reader.until(closing, write)
        if found in format.closings:
            yield from reader.sees(closing, read=True)
            if format.in_content:
                self._text(str(found))
            else:
                yield from reader.skip(WHITESPACE)

    def _inside(self) -> Reading[None]:
        """The answer between its markers, behind the first of them."""
        told, after = _Trimmed(self._text), Markers(self.format.around[1])
        if (yield from self._reader.until(after, told.add)) is not None:
            yield from self._reader.sees(after, read=True)
            yield from self._reader.skip(WHITESPACE)

    def _think(self, text: str) -> None:
        if text := visible(text):
            self._events.append(Thought(text))

    def _text(self, text: str) -> None:
        if text:
            self._events.append(Text(text))


class _Trimmed:
    """Gives text on, without white space at its beginning and its end."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._held, self._is_first = tell, "", True

    def add(self, text: str) -> None:
        """More text; white space that it ends in is told with what follows it."""
        text = self._held + text
        if self._is_first:
            text = text.lstrip(WHITESPACE)
        sure = text.rstrip(WHITESPACE)
        self._held = text[len(sure) :]
        if sure:
            self._is_first = False
            self._tell(sure)
