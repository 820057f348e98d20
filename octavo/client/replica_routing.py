"""Which of several replicas a request goes to: the one that has the least left to compute with it.

Work is counted in tokens of prompts. A replica has left what its requests have still to be read, until their first
token has come, and a fixed count for each sequence that has not ended. A request adds what the replica would have to
read of its prompt: the tokens behind the longest prefix that it was sent before. So a prefix draws requests to the
replica that holds it until others are less busy by more than the prefix is worth; and where nothing is shared, work is
even.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SEQUENCE_TOKENS = 64
"""What a sequence that has not ended counts: nobody knows how long it becomes."""
MOST_BLOCKS = 1 << 16
"""Most hashes that are kept of a replica."""


class PrefixTable:
    """Hashes of the blocks that a replica was sent, as its prefix cache has them: the least recently used go first.

    Args:
        capacity: most hashes, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(1, min(capacity, MOST_BLOCKS))
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def count(self, hashes: Sequence[bytes]) -> int:
        """How many of a sequence's first blocks are there."""
        for number, one in enumerate(hashes):
            if one not in self._hashes:
                return number
        return len(hashes)

    def add(self, hashes: Sequence[bytes]) -> None:
        """A sequence of these blocks was sent: they are used last, its first block after all others."""
        for one in reversed(hashes[: self.capacity]):  # so that a sequence is forgotten from its end
            self._hashes[one] = None
            self._hashes.move_to_end(one)
        while len(self._hashes) > self.capacity:
            self._hashes.popitem(last=False)

    def clear(self) -> None:
        """The replica's cache is empty."""
        self._hashes.clear()


@dataclass
class Replica:
    """What is known of a replica's work."""

    table: PrefixTable
    prompt_tokens: int = 0
    """To be read."""
    sequences: int = 0
    """That have not ended."""
    last_chosen: int = 0

    @property
    def work(self) -> int:
        """Tokens left to compute."""
        return self.prompt_tokens + SEQUENCE_TOKENS * self.sequences


@dataclass
class Route:
    """Where a request went, and what it has left to do there."""

    replica: int
    prompt_tokens: int
    sequences: set[int] = field(default_factory=set)
    """Those that have not ended."""


class Router:
    """Chooses replicas, and keeps count of what they have left to do.

    Args:
        capacities: for each replica how many blocks of prefixes it holds, about.
        block_size: tokens of a block; 0 where prefixes are not kept.
    """

    def __init__(self, capacities: Sequence[int], block_size: int) -> None:
        self.replicas = [Replica(PrefixTable(capacity)) for capacity in capacities]
        self.block_size = block_size
        self._chosen = 0

    def rank(self, running: Iterable[int], num_tokens: int, hashes: Sequence[bytes]) -> list[tuple[int, int]]:
        """The replicas among `running`, best first, each with how many of the request's tokens it would read.

        Args:
            running: numbers of replicas that take requests.
            num_tokens: of the prompt.
            hashes: of the prompt's blocks.
        """
        places = []
        for number in running:
            replica = self.replicas[number]
            # The last token is read whatever is held: the answer begins with what follows it.
            to_read = max(1, num_tokens - self.block_size * replica.table.count(hashes))
            places.append((replica.work + to_read, replica.sequences, replica.last_chosen, number, to_read))
        return [(number, to_read) for *_, number, to_read in sorted(places)]

    def start(self, number: int, to_read: int, sequences: int, hashes: Sequence[bytes]) -> Route:
        """A request was sent to a replica."""
        replica = self.replicas[number]
        replica.table.add(hashes)
        replica.prompt_tokens += to_read
        replica.sequences += sequences
        self._chosen += 1
        replica.last_chosen = self._chosen
        return Route(number, to_read, set(range(sequences)))

    def has_read(self, route: Route) -> None:
        """A request's prompt was read."""
        self.replicas[route.replica].prompt_tokens -= route.prompt_tokens
        route.prompt_tokens = 0

    def end(self, route: Route, indexes: Iterable[int] | None = None) -> bool:
        """Some of a request's sequences have ended, or all of it; whether nothing of it is left."""
        ended = route.sequences & set(indexes) if indexes is not None else set(route.sequences)
        self.replicas[route.replica].sequences -= len(ended)
        route.sequences -= ended
        if not route.sequences:
            self.has_read(route)
        return not route.sequences

    def forget(self, number: int) -> None:
        """A replica has ended: what it held is gone. (Its requests are ended one by one.)"""
        self.replicas[number].table.clear()
