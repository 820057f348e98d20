"""Text as it comes, for readers that are written as if all of it were there.

A reader is a generator: it yields where it needs more text, and is resumed when there is more. What it decides depends
on the text alone, never on the pieces in which it comes: each method here waits until that is so.
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from octavo.server.json_scanner import JsonScanner, Scan
from octavo.server.markers import Markers

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Waits for text, and returns a T."""


class NotACallError(Exception):
    """What has been read is no call of a tool."""


class TextReader:
    """The text so far, and a place in it. `add` gives more; everything else reads on from the place."""

    def __init__(self) -> None:
        self._text, self._at, self._ended = "", 0, False
        self.kept: list[str] | None = None
        """What has been read since `keep`, in pieces; None where nothing is kept."""

    def add(self, text: str, ended: bool) -> None:
        """More text, and whether it is the last."""
        self._text, self._at = self._text[self._at :] + text, 0
        self._ended = self._ended or ended

    def keep(self) -> None:
        """Note what is read from here on, for the case that it is no call."""
        self.kept = []

    def _read(self, size: int) -> str:
        part = self._text[self._at : self._at + size]
        self._at += size
        if self.kept is not None:
            self.kept.append(part)
        return part

    def peek(self) -> Reading[str]:
        """The next character; none at the end."""
        while self._at >= len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> Reading[str]:
        """The next character, read; none at the end."""
        return self._read(1) if (yield from self.peek()) else ""

    def sees(self, markers: Markers, read: bool = False, or_cut: bool = False) -> Reading[str | None]:
        """The marker that stands here, if one does, which is read or not; with `or_cut` also one that the end cuts."""
        while True:
            rest = self._text[self._at : self._at + markers.longest]
            for spelling, marker in markers.spellings.items():
                if rest.startswith(spelling):
                    if read:
                        self._read(len(spelling))
                    return marker
            if self._ended and or_cut and rest in markers.beginnings:
                return self._read(len(rest))
            if self._ended or (rest and rest not in markers.beginnings) or not markers:
                return None
            yield

    def expect(self, markers: Markers) -> Reading[str]:
        """The marker that must stand here. Raises NotACallError for anything else."""
        if (marker := (yield from self.sees(markers, read=True))) is None:
            raise NotACallError
        return marker

    def until(self, markers: Markers, on_text: Callable[[str], None]) -> Reading[str | None]:
        """Read what comes before the first of the markers, which is not read; None at the end of the text."""
        while True:
            found = markers.pattern.search(self._text, self._at)
            end = len(self._text) if found is None else found.start()
            if found is None and not self._ended:
                end -= markers.begun(self._text[max(self._at, end - markers.longest) :])
            if end > self._at:
                on_text(self._read(end - self._at))
            if found is not None:
                return markers.spellings[found[0]]
            if self._ended:
                return None
            yield

    def span(self, characters: "re.Pattern[str]", most: int) -> Reading[str]:
        """Characters of this class (a pattern of one or more), up to the first other one.

        Raises NotACallError where there are more than `most`.
        """
        parts, left = list[str](), most
        while (yield from self.peek()) and (match := characters.match(self._text, self._at)):
            if match.end() - self._at > left:
                self._read(left)
                raise NotACallError
            left -= match.end() - self._at
            parts.append(self._read(match.end() - self._at))
        return "".join(parts)

    def skip(self, characters: str) -> Reading[str]:
        """Read on over these characters. Returns them."""
        parts = list[str]()
        while (char := (yield from self.peek())) and char in characters:
            parts.append(self._read(1))
        return "".join(parts)

    def scan(self, scanner: JsonScanner) -> Reading[tuple[str, Scan]]:
        """What the scanner takes next: the midst of a string, or a character. What is BAD is not read."""
        if not (yield from self.peek()):
            return "", Scan.BAD
        end = scanner.plain(self._text, self._at)
        if end > self._at:
            return self._read(end - self._at), Scan.MORE
        scan = scanner.take(self._text[self._at])
        return ("", scan) if scan is Scan.BAD else (self._read(1), scan)
