"""Calls of tools whose arguments stand each between tags, as text: `<parameter=city>Rome</parameter>`."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from octavo.server.argument_types import TEXT, argument_types, typed
from octavo.server.json_calls import NAME, NAME_MOST
from octavo.server.json_scanner import WHITESPACE
from octavo.server.markers import Markers, spelled
from octavo.server.text_reader import NotACallError, Reading
from octavo.server.tool_calls import dump
from octavo.server.tool_parser import CallWriter

Tags = tuple[str, str]
"""What stands before and behind something."""


@dataclass(frozen=True)
class TaggedCalls:
    """A name, then arguments by name.

    A tag that is empty is not there: a name without one behind it ends where arguments or the call's end begin.
    """

    name: Tags
    key: Tags
    value: Tags
    end: str = ""
    """What ends the call; the format's own closing marker where it is empty."""
    before: tuple[str, ...] = ()
    """Markers before all that."""
    key_ends: tuple[tuple[str, bool], ...] = ()
    """Other tags behind a key, and whether they say that the value is text, or JSON."""
    on_lines: bool = False
    """Whether values stand on lines of their own."""

    @property
    def markers(self) -> Iterable[str]:
        return [m for m in (*self.before, *self.name, *self.key, *self.value, self.end) if m]

    @cached_property
    def begins(self) -> Markers:
        return Markers(*(self.before or self.name)[:1])

    @cached_property
    def _key_ends(self) -> Markers:
        return Markers(self.key[1], *(tag for tag, _ in self.key_ends))

    @cached_property
    def _values(self) -> Markers:
        return Markers(self.value[1])

    def read(self, calls: CallWriter) -> Reading[None]:
        reader = calls.reader
        for marker in (*self.before, self.name[0]):
            yield from reader.skip(WHITESPACE)
            if marker:
                yield from reader.expect(Markers(marker))
        yield from reader.skip(WHITESPACE)
        name = yield from reader.span(NAME, NAME_MOST)
        yield from reader.skip(WHITESPACE)
        if self.name[1]:
            yield from reader.expect(Markers(self.name[1]))
        yield from reader.skip(WHITESPACE)
        ends = Markers(self.end) if self.end else calls.closing
        followers = Markers(self.key[0], *ends.markers)
        if not (yield from reader.sees(followers)):
            raise NotACallError
        calls.begin(name)
        opened = "{"
        while (yield from reader.sees(followers)) == self.key[0]:
            yield from reader.sees(followers, read=True)
            yield from self._argument(calls, name, opened)
            opened = ", "
            yield from reader.skip(WHITESPACE)
        if not (yield from reader.sees(ends, read=bool(self.end))):
            raise NotACallError
        calls.arguments("{}" if opened == "{" else "}")
        calls.end()

    def _argument(self, calls: CallWriter, name: str, opened: str) -> Reading[None]:
        """One argument, behind the tag that opens its key."""
        reader = calls.reader
        key = spelled((yield from reader.span(NAME, NAME_MOST)))
        yield from reader.skip(WHITESPACE)
        tag = yield from reader.expect(self._key_ends)
        if self.value[0]:
            yield from reader.skip(WHITESPACE)
            yield from reader.expect(Markers(self.value[0]))
        schema = None if calls.schemas is None else calls.schemas.get(name)
        types = argument_types(schema, key)
        if tag != self.key[1]:
            types = TEXT if dict(self.key_ends)[tag] else types if types != TEXT else frozenset({"object"})
        calls.arguments(f"{opened}{dump(key)}: ")
        if types == TEXT:
            yield from self._text(calls)
        else:
            parts = list[str]()
            if (yield from reader.until(self._values, parts.append)) is None:
                raise NotACallError
            yield from reader.sees(self._values, read=True)
            calls.arguments(typed(self._trimmed(spelled("".join(parts))), types))

    def _trimmed(self, text: str) -> str:
        return text.removeprefix("\n").removesuffix("\n") if self.on_lines else text

    def _text(self, calls: CallWriter) -> Reading[None]:
        """A value that is text, told as it comes."""
        held, is_first = "", True

        def tell(piece: str) -> None:
            nonlocal held, is_first
            piece = held + spelled(piece)
            if is_first and self.on_lines:
                piece, is_first = piece.removeprefix("\n"), False
            held = "\n" if self.on_lines and piece.endswith("\n") else ""
            if piece := piece[: len(piece) - len(held)]:
                calls.arguments(dump(piece)[1:-1])

        calls.arguments('"')
        if (yield from calls.reader.until(self._values, tell)) is None:
            raise NotACallError
        yield from calls.reader.sees(self._values, read=True)
        calls.arguments('"')
