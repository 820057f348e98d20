"""Markdown that comes piece by piece, cut where a part of it is complete and can be shown for good.

Each line is looked at once, so that the cost is linear in the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([^`]*)$")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])\s")
_INDENTED = re.compile(r"(?: {2,}|\t)\S")
CODE_LINES = 16
"""Lines of code that are shown at once."""
LONGEST = 4000
"""Characters of a paragraph, after which it is shown as it is at the end of a line."""


@dataclass(frozen=True)
class Block:
    """A part that is complete."""

    text: str
    language: str | None = None
    """Of code; None for Markdown."""
    is_apart: bool = True
    """Whether an empty line stands before it."""


class MarkdownBlocks:
    """Takes text, and gives blocks. What is in none of them yet is `rest`."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        """Complete lines of the block that has begun."""
        self._partial: list[str] = []
        """Pieces of the line that has begun."""
        self._size = 0
        self._fence: str | None = None
        """What ends the code; None outside of code."""
        self._language = ""
        self._is_list = self._is_apart = False
        self._blanks = 0
        """Empty lines behind the block, which may belong to it."""
        self._has_begun = False

    @property
    def rest(self) -> str:
        """What has come of the next block."""
        return "\n".join([*self._lines, *[""] * self._blanks, "".join(self._partial)])

    @property
    def language(self) -> str | None:
        """That of the code which the rest is; None for Markdown."""
        return self._language if self._fence is not None else None

    def feed(self, text: str) -> Iterator[Block]:
        """More text; the blocks that are complete with it."""
        *lines, last = text.split("\n")
        for line in lines:
            whole = "".join([*self._partial, line])
            self._partial = []
            yield from self._line(whole)
        if last:
            self._partial.append(last)

    def end(self) -> Iterator[Block]:
        """The text has ended: what is left of it."""
        if self._partial:
            whole, self._partial = "".join(self._partial), []
            yield from self._line(whole)
        yield from self._flush()

    def _line(self, line: str) -> Iterator[Block]:
        if self._fence is not None:
            yield from self._code(line)
            return
        fence = _FENCE.match(line)
        if fence is not None and not (self._is_list and line[:1].isspace()):
            yield from self._flush()
            self._fence, self._language, self._is_apart = fence[1], fence[2].strip(), True
            return
        if not line.strip():
            self._blanks += bool(self._lines)
            if not self._is_list:
                yield from self._flush()
            return
        is_item, was_blank = bool(_ITEM.match(line)), self._blanks > 0
        if (self._lines and (is_item if self._is_list else _HEADING.match(line) or is_item)) or (
            was_blank and not _INDENTED.match(line)
        ):
            was_list = self._is_list
            yield from self._flush()
            self._is_apart = was_blank or not (was_list and is_item)
        if not self._lines:
            self._is_list = is_item
            self._is_apart = self._is_apart or not is_item
        self._lines += [*[""] * self._blanks, line]
        self._blanks = 0
        self._size += len(line)
        if _HEADING.match(line) or (self._size > LONGEST and not self._is_list and "|" not in line):
            yield from self._flush()

    def _code(self, line: str) -> Iterator[Block]:
        assert self._fence is not None
        if line.strip() and not line.strip().strip(self._fence[0]) and len(line.strip()) >= len(self._fence):
            yield from self._flush()
            self._fence, self._is_apart = None, True
            return
        self._lines.append(line)
        if len(self._lines) >= CODE_LINES:
            yield from self._flush()
            self._is_apart = False

    def _flush(self) -> Iterator[Block]:
        lines, self._lines, self._size = self._lines, [], 0
        is_apart, self._is_apart = self._is_apart, True
        self._is_list, self._blanks = False, 0
        if lines:
            yield Block("\n".join(lines), self.language, is_apart and self._has_begun)
            self._has_begun = True
