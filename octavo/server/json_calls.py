"""Calls of tools that are JSON: as a whole, or their arguments behind a name."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from octavo.server.json_scanner import WHITESPACE, JsonScanner, Scan
from octavo.server.markers import Markers, spelled
from octavo.server.text_reader import NotACallError, Reading
from octavo.server.tool_calls import dump, finite, read_arguments
from octavo.server.tool_parser import CallWriter, Notation

NAME = re.compile(r"[\w.\-/:]+")
NAME_MOST = 256
"""Characters of a name, and of what else stands before arguments."""


class JsonStarts:
    """What JSON calls begin with."""

    begins = Markers("{", "[")


@dataclass(frozen=True)
class JsonCalls(JsonStarts):
    """`{"name": ..., "arguments": {...}}`, or a list of such objects."""

    name_keys: tuple[str, ...] = ("name",)
    argument_keys: tuple[str, ...] = ("arguments", "parameters")
    by_key: bool = False
    """Whether a call is `{NAME: {...}}` instead."""
    before: tuple[str, ...] = ()
    """Markers that may stand before it, in this order."""

    @property
    def markers(self) -> Iterable[str]:
        return self.before

    def read(self, calls: CallWriter) -> Reading[None]:
        for marker in self.before:
            yield from calls.reader.skip(WHITESPACE)
            yield from calls.reader.sees(Markers(marker), read=True)
        yield from calls.reader.skip(WHITESPACE)
        if (yield from calls.reader.peek()) not in ("{", "["):
            raise NotACallError
        yield from _JsonReader(self, calls).run()


class _JsonReader:
    """Reads one value, which must be a call or a list of them."""

    def __init__(self, notation: JsonCalls, calls: CallWriter) -> None:
        self.notation, self.calls = notation, calls
        self.scanner = JsonScanner()
        self.level = 0
        """How many brackets are open inside a call and outside its values."""
        self.num_calls = 0
        self._new_call()

    def _new_call(self) -> None:
        self.key = ""
        self.part = list[str]()
        """A key or a value, so far."""
        self.name: str | None = None
        self.found: str | None = None
        """The arguments' text, where they were not told as they came."""
        self.is_telling = self.has_told = False

    def run(self) -> Reading[None]:
        scan = Scan.MORE
        while scan is not Scan.DONE:
            before, in_string = self.scanner.depth, self.scanner.in_string
            piece, scan = yield from self.calls.reader.scan(self.scanner)
            if scan is Scan.BAD:
                yield from self._cut()
                return
            self.level = self.level or (1 if piece == "{" else 2)
            self._take(piece, before, in_string)
        if not self.num_calls:
            raise NotACallError

    def _cut(self) -> Reading[None]:
        """What comes is no part of the value. A call that has its arguments is complete where the answer ends."""
        if (yield from self.calls.reader.peek()) or not self.has_told or self.is_telling:
            raise NotACallError
        self.calls.end()

    def _take(self, piece: str, before: int, in_string: bool) -> None:
        depth, level = self.scanner.depth, self.level
        if before < level:
            if (piece not in "{[]," and piece not in WHITESPACE) or (piece == "[" and before):
                raise NotACallError  # a list of something else
            if depth == level:
                self._new_call()
        elif depth < level:
            self._take_field()
            self._complete()
        elif self.is_telling:
            self.calls.arguments(piece)
            self.is_telling = depth > level
            self.has_told = True
        elif depth == level == before and not in_string and piece in ":,":
            if piece == ":":
                self.key, self.part = str(json.loads("".join(self.part))), []
            else:
                self._take_field()
        elif depth > level == before and piece == "{" and self._may_tell():
            self.calls.begin(str(self.name))
            self.calls.arguments(piece)
            self.is_telling = True
        else:
            self.part.append(spelled(piece))

    def _may_tell(self) -> bool:
        """Whether the value that begins is the arguments of a call that can be told as it comes."""
        notation, calls = self.notation, self.calls
        if self.has_told or not (notation.by_key or self.key in notation.argument_keys):
            return False
        if notation.by_key:
            self.name = self.key
        return bool(self.name) and not (calls.strict and calls.schemas is not None and self.name not in calls.schemas)

    def _take_field(self) -> None:
        """A key and its value are complete."""
        text, self.part = "".join(self.part).strip(), []
        if self.has_told or not text:
            return
        if self.key in self.notation.name_keys and not self.notation.by_key:
            value = self._value(text)
            self.name = value if isinstance(value, str) else None
        elif self.key in self.notation.argument_keys and (self.found is None or self.key == "arguments"):
            self.found = text

    def _value(self, text: str) -> object:
        try:
            return json.loads(text, parse_float=finite)
        except ValueError as error:
            raise NotACallError from error

    def _complete(self) -> None:
        """The call is complete, and told if it was not."""
        if not self.has_told:
            arguments = {} if self.found is None else read_arguments(self._value(self.found))
            if not self.name or arguments is None or (self.calls.strict and self.found is None):
                raise NotACallError
            self.calls.begin(self.name)
            self.calls.arguments(dump(arguments))
        self.calls.end()
        self.num_calls += 1


@dataclass(frozen=True)
class NamedCalls:
    """A name, then its arguments in JSON: `NAME[ARGS]{...}`."""

    before: tuple[str, ...] = ()
    """Markers before the name."""
    after: str = ""
    """The marker between the name and the arguments, which may be missing."""
    id_after: str = ""
    """The marker between the name and an id."""
    prefix: str = ""
    """What names begin with, and a number ends after a colon: such a name is the call's id as well."""
    fenced: bool = False
    """Whether the arguments stand in a block of code."""

    @property
    def markers(self) -> Iterable[str]:
        return [m for m in (*self.before, self.after, self.id_after) if m]

    @cached_property
    def begins(self) -> Markers:
        return Markers(*self.before[:1])

    def read(self, calls: CallWriter) -> Reading[None]:
        reader = calls.reader
        yield from reader.skip(WHITESPACE)
        for marker in self.before:
            yield from reader.expect(Markers(marker))
        name = yield from reader.span(NAME, NAME_MOST)
        id = None
        if self.prefix:
            id, name = name, re.sub(r":\d+$", "", name.removeprefix(self.prefix))
        yield from reader.skip(WHITESPACE)
        if self.id_after and (yield from reader.sees(Markers(self.id_after), read=True)):
            id = (yield from reader.span(NAME, NAME_MOST)) or None
        if self.after:
            yield from reader.sees(Markers(self.after), read=True)
        yield from reader.skip(WHITESPACE)
        if self.fenced:
            yield from reader.sees(Markers("```json"), read=True)
            yield from reader.skip(WHITESPACE)
        if (yield from reader.peek()) != "{":
            raise NotACallError
        calls.begin(name, id)
        yield from read_object(calls)
        calls.end()
        if self.fenced:
            yield from reader.skip(WHITESPACE)
            yield from reader.sees(Markers("```"), read=True)


def read_object(calls: CallWriter) -> Reading[None]:
    """Tell a JSON object as a call's arguments while it comes."""
    scanner, scan = JsonScanner(), Scan.MORE
    while scan is not Scan.DONE:
        piece, scan = yield from calls.reader.scan(scanner)
        if scan is Scan.BAD:
            raise NotACallError
        calls.arguments(piece)


@dataclass(frozen=True)
class JsonOr:
    """JSON calls where a bracket comes, and another notation where anything else does."""

    json: JsonCalls
    other: Notation

    @property
    def markers(self) -> Iterable[str]:
        return (*self.json.markers, *self.other.markers)

    @cached_property
    def begins(self) -> Markers:
        return Markers(*self.json.begins.markers, *self.other.begins.markers)

    def read(self, calls: CallWriter) -> Reading[None]:
        yield from calls.reader.skip(WHITESPACE)
        is_json = (yield from calls.reader.peek()) in ("{", "[")
        yield from (self.json if is_json else self.other).read(calls)
