"""A request's life in the scheduler: one sequence of tokens."""

from dataclasses import dataclass, field
from enum import Enum

from octavo.engine.kv_cache import HashChain, SequenceBlocks

PRIOR_RATE = 0.7
"""What share of a sequence's drafts is expected to be right before there were any."""


class Status(Enum):
    PREPARING = "preparing"
    LOADING = "loading"
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
    chain: HashChain = field(default_factory=HashChain)
    """What its blocks are known by: its features too, those that it attends to computed whole when it starts."""
    adapter: bytes | None = None
    """The digest of its adapter."""
    recompute_beyond: int | None = None
    """The length after which all of its keys are others (LongRoPE's second table); None where they stay."""
    is_whole: bool = False
    """Whether all of its tokens are computed in one step, however many there are."""
    held: list[int] = field(default_factory=list)
    """Which of its features' rows are kept for it."""
    status: Status = Status.WAITING
    num_computed: int = 0
    """Tokens that are computed, or are in a step that is on its way: the next step goes on after them."""
    num_in_flight: int = 0
    """How many steps on their way compute tokens of it."""
    num_cached: int = 0
    """Tokens of its first run that the prefix cache gave."""
    num_preemptions: int = 0
    num_found: int = 0
    """Blocks of its beginning that the cache had when it queued, where blocks are kept outside of it too."""
    drafts: list[int] = field(default_factory=list)
    """Guesses at the tokens that follow, to be computed with the last of them."""
    rewinds: bool = False
    """Whether its states of fixed size went on with drafts that were wrong."""
    draft_rate: float = PRIOR_RATE
    """The share of drafts that was right of late."""
    row: int = -1
    """Its row in the executor while it runs."""
    blocks: SequenceBlocks | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether a step may not compute just any number of its tokens."""
        return bool(self.chain.features or self.chain.both_ways)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first."""
        return (self.priority, self.seq_id)

    @property
    def remaining(self) -> int:
        """Tokens still to be computed."""
        return len(self.tokens) - self.num_computed
