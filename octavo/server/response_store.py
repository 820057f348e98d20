"""Responses that are kept, so that later requests can go on from them: in memory, up to a bound."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from octavo.server.event_stream import to_json

Item = dict[str, Any]


@dataclass(eq=False)
class Kept:
    """A response, with the input that it answers.

    Args:
        response: as clients get it.
        items: its own input.
        before: the response that it goes on from.
    """

    response: dict[str, Any]
    items: list[Item]
    before: "Kept | None" = None
    size: int = 0
    """Bytes that count for it."""
    num_users: int = field(default=0, repr=False)
    """The store, where it can be found there, and responses that go on from it."""
    events: list[dict[str, Any]] | None = None
    """Of one whose events can be read again."""
    has_changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set at the next change, after which another takes its place."""

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.response["id"])

    @property
    def is_kept(self) -> bool:
        """Whether the store has it."""
        return self.num_users > 0

    def change(self) -> None:
        """Tell who waits that something is new."""
        changed, self.has_changed = self.has_changed, asyncio.Event()
        changed.set()

    def conversation(self) -> list[Item]:
        """All items that lead to this response, and its own output."""
        return [item for kept in self._line() for item in (*kept.items, *kept.response["output"])]

    def input(self) -> list[Item]:
        """All items that the model was given, instructions aside."""
        return [*(self.before.conversation() if self.before is not None else ()), *self.items]

    def _line(self) -> list["Kept"]:
        line, kept = list["Kept"](), self
        while True:
            line.append(kept)
            if kept.before is None:
                return line[::-1]
            kept = kept.before


class ResponseStore:
    """What has been kept, of which those that were used least lately go first.

    A response that another goes on from keeps its place in memory, and its share of the bound, as long as that one.

    Args:
        max_bytes: of all of them, as JSON; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._found: OrderedDict[str, Kept] = OrderedDict()

    def get(self, id: str) -> Kept | None:
        """The response of that id, if it is there."""
        kept = self._found.get(id)
        if kept is not None:
            self._found.move_to_end(id)
        return kept

    def put(self, kept: Kept) -> None:
        """Keep one that is new, or has changed."""
        id, size = kept.id, len(to_json([kept.response, kept.items, kept.events]))
        if kept.num_users:
            self.num_bytes += size - kept.size
        kept.size = size
        if id not in self._found:
            self._found[id] = kept
            self._hold(kept)
        self._found.move_to_end(id)
        while self.num_bytes > self.max_bytes and self._found:
            self._release(self._found.popitem(last=False)[1])

    def drop(self, id: str) -> bool:
        """Keep it no longer; whether it was there."""
        kept = self._found.pop(id, None)
        if kept is not None:
            self._release(kept)
        return kept is not None

    def _hold(self, kept: Kept) -> None:
        first: Kept | None = kept
        while first is not None:
            first.num_users += 1
            if first.num_users > 1:
                return
            self.num_bytes += first.size
            first = first.before

    def _release(self, kept: Kept) -> None:
        last: Kept | None = kept
        while last is not None:
            last.num_users -= 1
            if last.num_users:
                return
            self.num_bytes -= last.size
            last = last.before
