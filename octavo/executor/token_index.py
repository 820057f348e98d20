"""Texts of tokens, and where runs of them stood before: what guesses by what was written already look in."""

from array import array
from collections.abc import Iterable, Sequence

SEPARATOR = -1
"""Between texts: no token."""
NOWHERE = -1


class TokenIndex:
    """Tokens in their order, and for each run of some lengths the places where it ended before something that follows.

    A place is the number of the token that follows a run, counted from the first that was ever added. The latest place
    of each run is in a table, and each place knows the one before it: eight bytes a token and length, and a table's
    entry for each run that is unlike the others.

    Args:
        sizes: lengths of the runs that are looked for, in tokens.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._latest = {size: dict[int, int]() for size in sizes}
        self._before = {size: array("q") for size in self._latest}
        self._gone = 0
        """How many tokens there were before those of `_tokens`."""
        self.first = 0
        """The place of the first token that is not forgotten."""

    @property
    def end(self) -> int:
        """The place after the last token."""
        return self._gone + len(self._tokens)

    def __len__(self) -> int:
        return self.end - self.first

    def token(self, place: int) -> int:
        """The token at a place from `first` to `end`, or SEPARATOR."""
        return self._tokens[place - self._gone]

    def run(self, begin: int, end: int) -> list[int]:
        """The tokens at places from `begin`, those that are there."""
        return self._tokens[max(begin, self.first) - self._gone : end - self._gone]

    def add(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        begin, all_tokens = len(self._tokens), self._tokens
        all_tokens += tokens
        for size, latest in self._latest.items():
            before = self._before[size]
            for follows in range(begin, len(all_tokens)):
                run = all_tokens[follows - size : follows] if follows >= size else []
                key = hash(tuple(run))
                before.append(latest.get(key, NOWHERE) if run else NOWHERE)
                if run:
                    latest[key] = self._gone + follows

    def places(self, run: Sequence[int], most: int) -> list[int]:
        """Up to `most` places after a run, the latest first; none for one of another length than those."""
        size, found, run = len(run), list[int](), list(run)
        if size not in self._latest:
            return found
        place, before = self._latest[size].get(hash(tuple(run)), NOWHERE), self._before[size]
        while place >= self.first + size and len(found) < most:
            if self._tokens[place - size - self._gone : place - self._gone] == run:  # and no other of its hash
                found.append(place)
            place = before[place - self._gone]
        return found

    def forget(self, count: int) -> None:
        """Forget the first `count` tokens that are there."""
        for place in range(self.first, min(self.first + count, self.end)):
            for size, latest in self._latest.items():
                # Those after which something follows that is forgotten, or will be with the run.
                follows = place + size
                key = hash(tuple(self._tokens[place - self._gone : follows - self._gone]))
                if latest.get(key) == follows:
                    del latest[key]
        self.first = min(self.first + count, self.end)
        if self.first - self._gone > len(self):  # more is gone than there is
            gone = self.first - self._gone
            del self._tokens[:gone]
            for before in self._before.values():
                del before[:gone]
            self._gone = self.first
