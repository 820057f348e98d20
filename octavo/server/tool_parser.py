"""Finds calls of tools in a model's text as it comes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Event, Text
from octavo.server.json_scanner import WHITESPACE
from octavo.server.markers import Markers, is_text, spelled, visible
from octavo.server.text_reader import NotACallError, Reading, TextReader
from octavo.server.tool_calls import is_arguments

Schemas = Mapping[str, Any]
"""The JSON schemas of tools' arguments by the tools' names."""


class CallWriter(Protocol):
    """Where the reader of a call's notation reads from, and writes the call to."""

    reader: TextReader
    schemas: Schemas | None
    """Of the tools that there are; None where that is not known."""
    strict: bool
    """Whether only what names one of these tools, and has arguments, is a call."""
    closing: Markers

    def begin(self, name: str, id: str | None = None) -> None:
        """A call begins. Raises NotACallError for a name that cannot be one."""
        ...

    def arguments(self, text: str) -> None:
        """A part of its arguments' JSON text."""
        ...

    def end(self) -> None:
        """It is complete. Raises NotACallError where its arguments are no JSON."""
        ...


class Notation(Protocol):
    """How calls are written, behind the marker that opens them."""

    @property
    def markers(self) -> Iterable[str]:
        """Those that it looks for."""
        ...

    @property
    def begins(self) -> Markers:
        """What one more call begins with, behind another."""
        ...

    def read(self, calls: CallWriter) -> Reading[None]:
        """Read a call, or a list of them. Raises NotACallError at what is none."""
        ...


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls of tools."""

    notation: Notation
    openings: tuple[str, ...] = ()
    """Markers that calls begin with."""
    closings: tuple[str, ...] = ()
    """Markers that end them. The end of the answer and the next opening one end them as well."""
    wrappers: tuple[str, ...] = ()
    """Markers around all calls, which may be missing."""
    bare: tuple[str, ...] = ()
    """What calls without an opening marker begin with. They must name a tool that there is."""
    only_first: bool = False
    """Whether calls without a marker stand at the beginning of an answer alone."""
    strict: bool = False
    """Whether calls behind a marker must name a tool that there is, too."""
    between: str = WHITESPACE
    """Characters that may stand between calls."""
    numbered: str = ""
    """What ids begin with, where they are that, the name, a colon and the call's number in the conversation."""
    signs: tuple[str, ...] = field(default=(), compare=False)
    """What a chat template of the family writes, and those of others do not."""

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """All that may be special tokens."""
        return (*self.openings, *self.closings, *self.wrappers, *self.notation.markers)


class ToolParser:
    """Takes a model's text piece by piece, and gives what is content and what is a call, each as soon as it is certain.

    It looks at each character once, or twice where it ends one attempt and begins the next. What turns out not to be a
    call is content, up to the character that showed it, at which the search goes on. White space before, between and
    after calls belongs to them; it is content where text follows it.

    Args:
        format: how the model writes calls.
        schemas: of the tools that may be called, by their names; None for any. It matters for calls without a marker,
            and for the types of arguments that are written as text: behind a marker, a model means a call, and its
            client can answer that there is no such tool.
        max_calls: what comes beyond so many is left out.
    """

    def __init__(self, format: ToolFormat, schemas: Schemas | None = None, max_calls: int | None = None) -> None:
        self.format, self.schemas, self.max_calls = format, schemas, max_calls
        self.reader, self.strict = TextReader(), False
        self.num_calls = 0
        self.closing = Markers(*format.closings)
        self._starts = Markers(*format.openings, *format.wrappers, *format.bare)
        self._marked = Markers(*format.openings, *format.wrappers)
        self._events: list[Event] = []
        self._gap: list[str] | None = []
        """White space and wrappers that came since the beginning or a call; None within text."""
        self._is_empty_gap = True
        """Whether nothing but white space and what closes calls is in it."""
        self._pending: list[str] | None = None
        """The arguments of the call that has begun."""
        self._begun, self._is_told = CallBegin(""), False
        """The call, and whether its events are told."""
        self._told = 0
        """How many of the kept pieces its events have told."""
        self._work = self._run()

    def feed(self, text: str, finished: bool) -> list[Event]:
        """What is certain now."""
        self.reader.add(text, finished)
        next(self._work, None)
        events, self._events = self._events, []
        return joined(events)

    def _run(self) -> Reading[None]:
        markers = self._starts
        while True:
            start = yield from self.reader.until(markers, self._emit)
            if start is None:
                break
            if start in self.format.wrappers:
                self.reader.keep()
                yield from self.reader.sees(markers, read=True)
                self._wrap(start, "".join(self.reader.kept or ()))
                continue
            if start in self.format.bare and self.format.only_first and self._gap is None:
                self._emit((yield from self.reader.take()))
                continue
            yield from self._attempt(start)
        if self._gap and not (self.num_calls and self._is_empty_gap):
            self._flush_gap()

    def _attempt(self, start: str) -> Reading[None]:
        """Read what may be calls."""
        reader, marked = self.reader, start not in self.format.bare
        self.strict = self.format.strict or not marked
        reader.keep()
        try:
            if marked:
                yield from reader.sees(self._starts, read=True)
            while True:
                yield from self.format.notation.read(self)
                if not marked:
                    break
                self._gap_text((yield from reader.skip(self.format.between)))
                if (yield from reader.sees(self.closing, read=True, or_cut=True)):
                    self._set_gap()
                    break
                reader.keep()
                if (yield from reader.sees(self._marked)) or not (yield from reader.sees(self.format.notation.begins)):
                    break
        except NotACallError:
            self._give_up()
        reader.kept = None

    def begin(self, name: str, id: str | None = None) -> None:
        if not name or not is_text(name) or (self.strict and self.schemas is not None and name not in self.schemas):
            raise NotACallError
        self._begun, self._pending, self._is_told = CallBegin(name, id), [], False

    def arguments(self, text: str) -> None:
        assert self._pending is not None
        text = spelled(text)
        self._pending.append(text)
        if self._is_told:
            self._tell(CallArguments(text))
        elif len((so_far := "".join(self._pending)).strip()) > 1:  # what follows the bracket has shown what it is
            self._tell(self._begun)
            self._tell(CallArguments(so_far))
            self._is_told = True

    def end(self) -> None:
        if self._pending is None or not is_arguments("".join(self._pending)):
            raise NotACallError
        self._tell(CallEnd())
        self._pending = None
        self.num_calls += 1
        self._told = 0
        self._set_gap()
        self.reader.keep()

    @property
    def _is_full(self) -> bool:
        return self.max_calls is not None and self.num_calls >= self.max_calls

    def _tell(self, event: Event) -> None:
        self._told = len(self.reader.kept or ())
        if not self._is_full:
            self._events.append(event)

    def _give_up(self) -> None:
        """What was read is content, and so is a call that had begun."""
        kept, self.reader.kept = self.reader.kept or [], None
        if self._pending is None or self._is_full or not self._is_told:
            for part in kept:
                self._emit(part)
        else:
            if self._gap is not None:
                self._flush_gap()
            self._events.append(CallBroken(visible("".join(kept)), visible("".join(kept[self._told :]))))
        self._pending, self._told = None, 0

    def _emit(self, text: str) -> None:
        """Content."""
        text = visible(text)
        if self._gap is not None and text:
            rest = text.lstrip(self.format.between if self.num_calls else WHITESPACE)
            self._gap_text(text[: len(text) - len(rest)])
            if rest:
                self._flush_gap()
            text = rest
        if text:
            self._events.append(Text(text))

    def _wrap(self, marker: str, text: str) -> None:
        """A marker around calls. The opening one is content where no call comes."""
        if marker == self.format.wrappers[0]:
            self._gap = self._gap or []
            self._is_empty_gap = False
        elif self._gap is None or not self._is_empty_gap or not self.num_calls:
            self._emit(text)
            return
        else:
            return
        self._gap.append(text)

    def _gap_text(self, text: str) -> None:
        if self._gap is not None and text:
            self._gap.append(text)

    def _set_gap(self) -> None:
        self._gap, self._is_empty_gap = [], True

    def _flush_gap(self) -> None:
        if text := visible("".join(self._gap or ())):
            self._events.append(Text(text))
        self._gap, self._is_empty_gap = None, True


def joined(events: list[Event]) -> list[Event]:
    """The same with neighbouring texts as one."""
    out = list[Event]()
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, (Text, CallArguments)) and type(last) is type(event):
            out[-1] = type(event)(last.text + event.text)
        else:
            out.append(event)
    return out
