"""Markers of a model's formats, and what stands in a text for those that are special tokens.

A text without special tokens lacks them. So while a format is read, each of its markers that is a special token is, in
the text, a half of a surrogate pair, which no text holds by itself; a marker that is text is what it is.
"""

import re
from collections.abc import Iterable
from functools import cached_property

from octavo.text.tokenizer import Tokenizer

SURROGATE = re.compile("[\ud800-\udfff]")
FIRST_PRIVATE, LAST_PRIVATE = 0xD800, 0xDFFF
_PRIVATE: dict[str, str] = {}
"""The private character of each marker that any format has."""
_SPELLED: dict[str, str] = {}


def is_text(value: str) -> bool:
    """Whether the text has no halves of surrogate pairs."""
    return SURROGATE.search(value) is None


def private(marker: str) -> str:
    """What stands in a text for this marker where it is a special token."""
    if marker not in _PRIVATE:
        if FIRST_PRIVATE + len(_PRIVATE) > LAST_PRIVATE:
            raise ValueError("there are more markers than private characters")
        _PRIVATE[marker] = chr(FIRST_PRIVATE + len(_PRIVATE))
        _SPELLED[_PRIVATE[marker]] = marker
    return _PRIVATE[marker]


def spelled(text: str) -> str:
    """The text with its markers as they are written: what a special token inside a string stands for."""
    return SURROGATE.sub(lambda found: _SPELLED.get(found[0], ""), text)


def visible(text: str) -> str:
    """The text without markers that are special tokens."""
    return SURROGATE.sub("", text)


def shown_tokens(tokenizer: Tokenizer, markers: Iterable[str]) -> dict[int, str]:
    """Those of the markers that are special tokens, by their ids, and what stands for them."""
    shown = {}
    for marker in markers:
        for token in tokenizer.encode(marker, add_special_tokens=False) if marker else ():
            if tokenizer.token(token) == marker and marker not in tokenizer.decode([token]):
                shown[token] = private(marker)
    return shown


class Markers:
    """Markers that a reader looks for, each as text or as its private character.

    The first character of a marker should stand at no other place of it, nor of the others: what has begun one is then
    never the beginning of another.
    """

    def __init__(self, *markers: str) -> None:
        self.markers = tuple(dict.fromkeys(m for m in markers if m))
        self.spellings = {s: m for m in self.markers for s in (m, private(m))}
        self.longest = max(map(len, self.markers), default=0)
        self.beginnings = frozenset(m[:size] for m in self.markers for size in range(1, len(m)))

    def __bool__(self) -> bool:
        return bool(self.markers)

    @cached_property
    def pattern(self) -> "re.Pattern[str]":
        """Finds the first of them."""
        return re.compile("|".join(map(re.escape, sorted(self.spellings, key=len, reverse=True))) or "(?!)")

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a marker."""
        for size in range(min(len(text), self.longest - 1), 0, -1):
            if text[-size:] in self.beginnings:
                return size
        return 0
