"""Where a rank, one of the processes that compute a model together, stands among them, and how they reach each other.

Plain data, for messages too. octavo.ops.rank_operations says what ranks do together.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RankPlace:
    """Where a rank stands among all of them. Ranks of one stage follow each other."""

    rank: int = 0
    size: int = 1
    """Ranks in all: `tensor_size * num_stages`."""
    tensor_size: int = 1
    """Ranks that share each layer."""

    def __post_init__(self) -> None:
        if self.tensor_size < 1 or self.size % self.tensor_size or not 0 <= self.rank < self.size:
            raise ValueError(f"there is no rank {self.rank} of {self.size} with {self.tensor_size} for each layer")

    @property
    def tensor_rank(self) -> int:
        """Which of those that share its layers it is."""
        return self.rank % self.tensor_size

    @property
    def stage(self) -> int:
        return self.rank // self.tensor_size

    @property
    def num_stages(self) -> int:
        return self.size // self.tensor_size

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.num_stages - 1

    @property
    def is_output(self) -> bool:
        """Whether tokens are sampled here: tensor rank 0 of the last stage."""
        return self.tensor_rank == 0 and self.is_last_stage


@dataclass(frozen=True)
class RankLink:
    """How ranks reach each other."""

    memory: int | None = None
    """File descriptor of memory that all ranks of one machine have inherited."""
    address: str | None = None
    """torch.distributed's init_method, "tcp://host:port" or "file:///path": where there is no memory in common."""
    timeout: float = 60.0
    """Seconds that a rank waits for another in one operation of a step; outside steps, ten times as many."""
