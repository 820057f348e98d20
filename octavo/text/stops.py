"""Stop strings in a growing text, in time that depends on the text alone and not on how many they are."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache


class _Prefix:
    """A text with which some of the sorted stop strings begin: those from `first` up to, not including, `last`."""

    __slots__ = ("fallback", "first", "found", "last", "length", "next", "withheld")

    def __init__(self, first: int, last: int, length: int, fallback: "_Prefix | None") -> None:
        self.first, self.last, self.length = first, last, length
        self.fallback = fallback
        """The longest other such text that this one ends with; None for the empty one."""
        self.next: dict[str, _Prefix] = {}
        """Where each further character leads, as far as it has been asked for."""
        self.found: int | None = None
        """Of the stop strings that this text ends with, the one that was given first."""
        self.withheld = 0
        """How much of its end may yet grow into a stop string."""


class StopStrings:
    """Stop strings as one automaton (Aho and Corasick's), of which only what a text has met is ever made.

    A prefix is a range of the sorted strings, and a further character is looked up in it by halving: so that a
    hundred thousand strings cost a sort, and a character of text a few steps.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._place: dict[str, int] = {}
        for place, stop in enumerate(stops):
            self._place.setdefault(stop, place)
        self._sorted = sorted(self._place)
        self.start = _Prefix(0, len(self._sorted), 0, None)
        self.longest = max(map(len, self._sorted), default=0)

    def after(self, prefix: _Prefix, character: str) -> _Prefix:
        """The longest prefix of a stop string that ends with `character`, where `prefix` was it before."""
        found = prefix.next.get(character)
        return self._make(prefix, character) if found is None else found

    def _make(self, prefix: _Prefix, character: str) -> _Prefix:
        missing: list[tuple[_Prefix, tuple[int, int] | None]] = []
        at: _Prefix | None = prefix
        target = self.start
        while at is not None:
            known = at.next.get(character)
            if known is not None:
                target = known
                break
            missing.append((at, self._range(at, character)))
            at = at.fallback
        for at, stops in reversed(missing):
            if stops is not None:
                target = self._longer(at, stops, target)
            at.next[character] = target
        return target

    def _range(self, prefix: _Prefix, character: str) -> tuple[int, int] | None:
        """Which stop strings go on with `character` after `prefix`."""
        length, last = prefix.length, prefix.last
        first = prefix.first + (prefix.first < last and len(self._sorted[prefix.first]) == length)

        def key(stop: str) -> str:
            return stop[length]

        first = bisect_left(self._sorted, character, first, last, key=key)
        last = bisect_right(self._sorted, character, first, last, key=key)
        return (first, last) if first < last else None

    def _longer(self, prefix: _Prefix, stops: tuple[int, int], fallback: _Prefix) -> _Prefix:
        made = _Prefix(*stops, prefix.length + 1, fallback)
        shortest = self._sorted[made.first]
        is_whole = len(shortest) == made.length
        made.withheld = fallback.withheld if is_whole and made.last - made.first == 1 else made.length
        places = [p for p in (self._place[shortest] if is_whole else None, fallback.found) if p is not None]
        made.found = min(places, default=None)
        return made


@lru_cache(maxsize=4)
def _stop_strings(stops: tuple[str, ...]) -> StopStrings:
    """One automaton for all of a request's sequences."""
    return StopStrings(stops)


class StopChecker:
    """Looks for stop strings in a growing text.

    Args:
        stops: the strings.
        include: whether the one that has come stays in the text.
    """

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self.stops = list(stops)
        self.include = include
        self._strings = _stop_strings(tuple(self.stops))
        self._text, self._prefix = "", self._strings.start
        """What was read, and the longest beginning of a stop string that it ends with."""

    def check(self, text: str, num_new: int) -> tuple[int, str] | None:
        """Where `text` ends and at which stop string, if one has come with its last `num_new` characters.

        Of several, the one that ends first; of those that end at one place, the one that was given first.
        """
        if not self.stops or not num_new:
            return None
        self._read(text, len(text) - num_new)
        prefix = self._prefix
        for end in range(len(text) - num_new, len(text)):
            prefix = self._strings.after(prefix, text[end])
            if prefix.found is not None:
                stop = self.stops[prefix.found]
                return (end + 1 if self.include else end + 1 - len(stop)), stop
        self._text, self._prefix = text, prefix
        return None

    def withheld(self, text: str) -> int:
        """Characters at the end of `text` that may yet turn out to begin a stop string."""
        if not self.stops:
            return 0
        self._read(text, len(text))
        return self._prefix.withheld

    def _read(self, text: str, end: int) -> None:
        """Read as far as `end`: on from what was read, or, in another text, from where a stop string may begin."""
        start, prefix = len(self._text), self._prefix
        if start > end or not text.startswith(self._text):
            start, prefix = max(0, end + 1 - self._strings.longest), self._strings.start
        for i in range(start, end):
            prefix = self._strings.after(prefix, text[i])
        self._text, self._prefix = text[:end], prefix
