"""Which replicas have read which beginnings of prompts, as far as who routes can know: by their text, in pieces."""

import functools
import hashlib
import heapq
import random
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

R = TypeVar("R", bound=Hashable)

PIECE = 256
"""Bytes of a prompt's text that are recognized together."""
MOST_PIECES = 1024
"""Of a prompt: what comes behind them chooses no replica."""
ROOM = 1 << 18
"""Beginnings that are remembered; those that were used the longest ago are forgotten."""

TRIED = 8
"""Replicas that are asked for a request, one after the other, before all are looked at again."""


def prompt_text(body: Mapping[str, Any]) -> bytes:
    """What a request's prompt begins with, in the order in which templates write it: adapter, tools, messages."""
    given = next((body[name] for name in ("messages", "prompt", "input") if body.get(name)), None)
    return b"" if given is None else msgspec.json.encode([body.get("model"), body.get("tools"), given])


def chain(text: bytes) -> list[int]:
    """A number for each whole piece of `text`, which stands for all of the text up to the piece's end."""
    numbers, before = list[int](), b""
    for start in range(0, min(len(text) // PIECE, MOST_PIECES) * PIECE, PIECE):
        before = hashlib.blake2b(text[start : start + PIECE], key=before, digest_size=8).digest()
        numbers.append(int.from_bytes(before, "little"))
    return numbers


class PrefixMemory(Generic[R]):
    """Beginnings, and the replicas that were given them.

    Args:
        room: how many of them are remembered.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self._holders: OrderedDict[int, set[R]] = OrderedDict()

    def add(self, numbers: Iterable[int], replica: R) -> None:
        """A replica was given a prompt, by its `chain`."""
        for number in numbers:
            self._holders.setdefault(number, set()).add(replica)
            self._holders.move_to_end(number)
        while len(self._holders) > self.room:
            self._holders.popitem(last=False)

    def lengths(self, numbers: Sequence[int]) -> dict[R, int]:
        """How many pieces of a prompt, from its first on, each replica has read. Others than these have read none."""
        found = dict[R, int]()
        for length, number in enumerate(numbers, 1):
            holders = self._holders.get(number)
            if not holders:
                break
            for replica in holders:
                if found.get(replica, 0) == length - 1:
                    found[replica] = length
        return found

    def forget(self, replica: R) -> None:
        """A replica has gone, and what it held with it."""
        for number, holders in list(self._holders.items()):
            holders.discard(replica)
            if not holders:
                del self._holders[number]


def rank(
    replicas: Mapping[R, int], numbers: Sequence[int], memory: PrefixMemory[R], pieces_per_request: float
) -> list[R]:
    """The best replicas for a prompt, the best first: what each has read of it, less what it still has to do.

    Those that are equal in this come in an order that follows from the prompt's first piece and their names alone: who
    routes elsewhere, and has seen other requests, sends it the same way. Without a whole piece it is by chance.

    Args:
        replicas: how many requests each has now.
        numbers: the prompt's chain.
        memory: what they have read.
        pieces_per_request: what a request counts for.
    """
    lengths = memory.lengths(numbers)

    def place(replica: R) -> tuple[float, float]:
        tie = zlib.crc32(_name(replica), numbers[0] & 0xFFFFFFFF) if numbers else random.random()
        return pieces_per_request * replicas[replica] - lengths.get(replica, 0), tie

    return heapq.nsmallest(TRIED, replicas, key=place)


@functools.lru_cache(1 << 16)
def _name(replica: Hashable) -> bytes:
    return str(replica).encode()
