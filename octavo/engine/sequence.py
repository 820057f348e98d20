"""A request's life in the scheduler: one sequence of tokens."""

from dataclasses import dataclass, field
from enum import Enum

from octavo.engine.kv_cache import HashChain, SequenceBlocks


class Status(Enum):
    PREPARING = "preparing"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """Tokens to be computed, and how far that has come.

    The scheduler reads and writes this; it knows nothing of text, sampling or tensors.
    """

    seq_id: int
    """Unique; later sequences have larger ones."""
    tokens: list[int]
    """Prompt and answer; grows by a token a step once all are computed."""
    priority: int = 0
    """Smaller runs sooner."""
    read_prefix_cache: bool = True
    encoder_tokens: list[int] = field(default_factory=list)
    """What the model's encoder reads, whole and in one step, when the sequence starts."""
    chain: HashChain = field(default_factory=HashChain)
    status: Status = Status.WAITING
    num_computed: int = 0
    num_cached: int = 0
    """Tokens of its first run that the prefix cache gave."""
    num_preemptions: int = 0
    row: int = -1
    """Its row in the executor while it runs."""
    blocks: SequenceBlocks | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return (self.priority, self.seq_id)

    @property
    def remaining(self) -> int:
        """Tokens still to be computed."""
        return len(self.tokens) - self.num_computed
