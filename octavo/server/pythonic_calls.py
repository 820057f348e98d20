"""Calls of tools that are written as Python's: `[get_weather(city="Rome", days=3), now()]`."""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.server.json_scanner import WHITESPACE
from octavo.server.markers import Markers, spelled
from octavo.server.text_reader import NotACallError, Reading
from octavo.server.tool_calls import dump
from octavo.server.tool_parser import CallWriter

NAME = re.compile(r"[\w.\-]+")
NAME_MOST = 256
MAX_DEPTH = 100
"""Brackets within brackets in an argument."""
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}
_AFTER_BACKSLASH = frozenset("\\'\"abfnrtvxuUN01234567\n")
"""What makes an escape; any other character leaves the backslash as it is."""
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\0": "\\0"}


@dataclass(frozen=True)
class PythonicCalls:
    """A list of calls with arguments by name, or calls on lines of their own."""

    in_list: bool = True
    """Whether they stand in brackets."""

    @property
    def markers(self) -> Iterable[str]:
        return ()

    @cached_property
    def begins(self) -> Markers:
        return Markers("[") if self.in_list else Markers()

    def read(self, calls: CallWriter) -> Reading[None]:
        reader = calls.reader
        yield from reader.skip(WHITESPACE)
        in_list = (yield from reader.peek()) == "["
        if in_list:
            yield from reader.take()
        elif self.in_list:
            raise NotACallError
        while True:
            yield from reader.skip(WHITESPACE)
            yield from self._call(calls)
            yield from reader.skip(WHITESPACE)
            char = yield from reader.peek()
            if char == ",":
                yield from reader.take()
            elif in_list:
                if char != "]":
                    raise NotACallError
                yield from reader.take()
                return
            elif not NAME.match(char):
                return

    def _call(self, calls: CallWriter) -> Reading[None]:
        reader = calls.reader
        name = yield from reader.span(NAME, NAME_MOST)
        if not name or (yield from reader.peek()) != "(":
            raise NotACallError
        calls.begin(name)
        yield from reader.take()
        opened, seen = "{", set[str]()
        while True:
            yield from reader.skip(WHITESPACE)
            if (yield from reader.peek()) == ")":
                yield from reader.take()
                break
            key = yield from reader.span(NAME, NAME_MOST)
            yield from reader.skip(WHITESPACE)
            if not key or key in seen or (yield from reader.take()) != "=":
                raise NotACallError
            seen.add(key)
            text = yield from _argument(calls)
            calls.arguments(f"{opened}{dump(key)}: {literal(text)}")
            opened = ", "
            if (yield from reader.peek()) == ",":
                yield from reader.take()
        calls.arguments("{}" if opened == "{" else "}")
        calls.end()


def _argument(calls: CallWriter) -> Reading[str]:
    """The text of an argument, up to the comma or bracket behind it; line ends in strings become escapes."""
    reader, parts, closes = calls.reader, list[str](), list[str]()
    while char := (yield from reader.peek()):
        if not closes and char in ",)":
            return "".join(parts)
        yield from reader.take()
        if char in ("'", '"'):
            parts.append((yield from _string(calls, char)))
            continue
        if char in _CLOSES:
            if len(closes) == MAX_DEPTH:
                raise NotACallError
            closes.append(_CLOSES[char])
        elif char in ")]}" and (not closes or closes.pop() != char):
            raise NotACallError
        parts.append(char)
    raise NotACallError


def _string(calls: CallWriter, quote: str) -> Reading[str]:
    """A string behind its first quote, as one that ends in its line."""
    parts = [quote]
    while char := (yield from calls.reader.take()):
        if char == "\\":
            following = yield from calls.reader.take()
            known = following in _AFTER_BACKSLASH
            parts.append(f"\\{'n' if following == chr(10) else following}" if known else f"\\\\{following}")
            continue
        parts.append(_ESCAPED.get(char, spelled(char)))
        if char == quote:
            return "".join(parts)
    raise NotACallError


def literal(text: str) -> str:
    """The JSON text of a Python literal, in which JSON's words stand for Python's. Raises NotACallError."""
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
        json.dumps(value, allow_nan=False)
        return dump(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise NotACallError from error


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value) if isinstance(value, (str, int, float, bool, type(None))):
            return value
        case ast.List(parts) | ast.Tuple(parts) | ast.Set(parts):
            return [_value(part) for part in parts]
        case ast.Dict(keys, values):
            if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys):
                raise ValueError("an object's keys must be texts")
            return {key.value: _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore[union-attr]
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, ast.Constant(value)) if type(value) in (int, float):
            return -value if isinstance(sign, ast.USub) else value  # type: ignore[operator]
        case ast.Name(name) if name in _WORDS:
            return _WORDS[name]
    raise ValueError("this is no literal")
