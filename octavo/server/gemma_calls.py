"""Calls of tools in Gemma's notation: `call:get_weather{city:<|"|>Rome<|"|>,days:3}`."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from octavo.server.argument_types import typed
from octavo.server.json_calls import NAME, NAME_MOST
from octavo.server.json_scanner import WHITESPACE
from octavo.server.markers import Markers, spelled
from octavo.server.text_reader import NotACallError, Reading
from octavo.server.tool_calls import dump
from octavo.server.tool_parser import CallWriter

MAX_DEPTH = 100
BARE = re.compile(r"[^,{}\[\]]+")
BARE_MOST = 1 << 16
"""Characters of a value that stands between no quotes."""
SCALARS = frozenset({"boolean", "number", "null", "array"})


@dataclass(frozen=True)
class GemmaCalls:
    """A name, and an object whose keys and numbers are bare, and whose texts stand between two markers.

    Args:
        quote: that marker.
        start: what stands before the name.
    """

    quote: str
    start: str = "call:"

    @property
    def markers(self) -> Iterable[str]:
        return (self.quote,)

    @cached_property
    def begins(self) -> Markers:
        return Markers(self.start)

    @cached_property
    def _quotes(self) -> Markers:
        return Markers(self.quote)

    def read(self, calls: CallWriter) -> Reading[None]:
        yield from calls.reader.skip(WHITESPACE)
        yield from calls.reader.expect(Markers(self.start))
        name = yield from calls.reader.span(NAME, NAME_MOST)
        if (yield from calls.reader.peek()) != "{":
            raise NotACallError
        calls.begin(name)
        yield from self._value(calls, 0)
        calls.end()

    def _value(self, calls: CallWriter, depth: int) -> Reading[None]:
        reader = calls.reader
        char = yield from reader.peek()
        if depth > MAX_DEPTH:
            raise NotACallError
        if char in ("{", "["):
            yield from self._many(calls, depth, char)
        elif (yield from reader.sees(self._quotes, read=True)):
            calls.arguments('"')
            yield from self._text(calls, lambda text: calls.arguments(dump(spelled(text))[1:-1]))
            calls.arguments('"')
        else:
            text = spelled((yield from reader.span(BARE, BARE_MOST))).strip()
            if not text:
                raise NotACallError
            calls.arguments(typed(text, SCALARS))

    def _many(self, calls: CallWriter, depth: int, opening: str) -> Reading[None]:
        """An object or a list."""
        reader, closing = calls.reader, "}" if opening == "{" else "]"
        yield from reader.take()
        calls.arguments(opening)
        is_first = True
        while True:
            yield from reader.skip(WHITESPACE)
            if (yield from reader.peek()) == closing:
                break
            if not is_first:
                if (yield from reader.take()) != ",":
                    raise NotACallError
                calls.arguments(", ")
                yield from reader.skip(WHITESPACE)
            is_first = False
            if opening == "{":
                calls.arguments(dump((yield from self._key(calls))) + ": ")
                yield from reader.skip(WHITESPACE)
            yield from self._value(calls, depth + 1)
        yield from reader.take()
        calls.arguments(closing)

    def _key(self, calls: CallWriter) -> Reading[str]:
        parts = list[str]()
        if (yield from calls.reader.sees(self._quotes, read=True)):
            yield from self._text(calls, parts.append)
        else:
            parts.append((yield from calls.reader.span(_KEY, NAME_MOST)).strip())
        yield from calls.reader.skip(WHITESPACE)
        if (yield from calls.reader.take()) != ":":
            raise NotACallError
        return spelled("".join(parts))

    def _text(self, calls: CallWriter, on_text: Callable[[str], None]) -> Reading[None]:
        """Text up to the next quote."""
        if (yield from calls.reader.until(self._quotes, on_text)) is None:
            raise NotACallError
        yield from calls.reader.sees(self._quotes, read=True)


_KEY = re.compile(r"[^:,{}\[\]<]+")
