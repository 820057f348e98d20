"""Where a JSON value ends, told character by character: nothing is read twice, and nothing recurses."""

import re
from enum import Enum

MAX_DEPTH = 200
"""Brackets within brackets; Python's own reader gives up at about a thousand."""
WHITESPACE = " \t\r\n"
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR_CHARACTERS = frozenset("-+.0123456789Etruefalsn")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")


class Scan(Enum):
    """What a character is to the value before it."""

    MORE = 0
    """A part of it."""
    DONE = 1
    """Its last character."""
    BAD = 2
    """No part of any JSON value that begins so."""


class _Expect(Enum):
    VALUE = 0
    VALUE_OR_END = 1
    KEY = 2
    KEY_OR_END = 3
    COLON = 4
    COMMA_OR_END = 5


class JsonScanner:
    """Takes an object or an array character by character. After DONE or BAD it takes nothing more."""

    def __init__(self) -> None:
        self._open: list[str] = []
        """The brackets that would close what is open."""
        self._expect = _Expect.VALUE
        self._in_string = self._escaped = self._is_key = False
        self._hex_left = 0
        self._scalar: list[str] = []

    @property
    def depth(self) -> int:
        """How many brackets are open."""
        return len(self._open)

    @property
    def in_string(self) -> bool:
        """Whether the next character is in a string, or ends it."""
        return self._in_string

    def plain(self, text: str, start: int) -> int:
        """Where the part of `text` from `start` on ends that is the midst of a string, and need not be taken."""
        if not self._in_string or self._escaped or self._hex_left:
            return start
        match = _PLAIN.match(text, start)
        return start if match is None else match.end()

    def take(self, char: str) -> Scan:
        """The next character."""
        if self._in_string:
            return self._take_in_string(char)
        if self._scalar:
            if char in _SCALAR_CHARACTERS:
                self._scalar.append(char)
                return Scan.MORE
            if _SCALAR.fullmatch("".join(self._scalar)) is None:
                return Scan.BAD
            self._scalar.clear()
            self._expect = _Expect.COMMA_OR_END
        if char in WHITESPACE and self._open:
            return Scan.MORE
        if self._expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return Scan.MORE if char == ":" else Scan.BAD
        if char in "]}":
            return self._close(char)
        if self._expect is _Expect.COMMA_OR_END:
            if char != ",":
                return Scan.BAD
            self._expect = _Expect.KEY if self._open[-1] == "}" else _Expect.VALUE
            return Scan.MORE
        return self._begin(char)

    def _take_in_string(self, char: str) -> Scan:
        if self._hex_left:
            self._hex_left -= 1
            return Scan.MORE if char in _HEX else Scan.BAD
        if self._escaped:
            self._escaped, self._hex_left = False, 4 if char == "u" else 0
            return Scan.MORE if char in _ESCAPES else Scan.BAD
        if char < " ":
            return Scan.BAD
        self._escaped = char == "\\"
        if char == '"':
            self._in_string = False
            self._expect = _Expect.COLON if self._is_key else _Expect.COMMA_OR_END
        return Scan.MORE

    def _close(self, char: str) -> Scan:
        may_end = (_Expect.VALUE_OR_END, _Expect.KEY_OR_END, _Expect.COMMA_OR_END)
        if self._expect not in may_end or not self._open or self._open.pop() != char:
            return Scan.BAD
        self._expect = _Expect.COMMA_OR_END
        return Scan.MORE if self._open else Scan.DONE

    def _begin(self, char: str) -> Scan:
        """A key, or a value of any kind."""
        self._is_key = self._expect in (_Expect.KEY, _Expect.KEY_OR_END)
        if char == '"' and self._open:
            self._in_string = True
        elif self._is_key:
            return Scan.BAD
        elif char in "{[" and len(self._open) < MAX_DEPTH:
            self._open.append("}" if char == "{" else "]")
            self._expect = _Expect.KEY_OR_END if char == "{" else _Expect.VALUE_OR_END
        elif char in _SCALAR_CHARACTERS and self._open:
            self._scalar.append(char)
        else:
            return Scan.BAD
        return Scan.MORE
