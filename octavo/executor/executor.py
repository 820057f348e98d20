"""What the engine needs of a place where the model runs."""

from collections.abc import Sequence
from typing import Protocol

from octavo.executor.shape import CacheShape
from octavo.executor.step import Step, StepResult
from octavo.loading.model_info import ModelInfo
from octavo.params import LogitsProcessor


class Executor(Protocol):
    """A loaded model, its caches, and what lives by sequence: sampling state, grammar, pooler, the encoder's output.

    A sequence lives here from its SequenceStart to the step that says it has ended. It has a row of the block tables
    while it runs; one that is preempted loses its row and keeps all else, and goes on in another row with a step that
    `is_new`.
    """

    info: ModelInfo
    shape: CacheShape
    rank_weight_bytes: list[int]
    """What the weights take, in each process that has some."""
    max_steps: int
    """How many steps may be submitted before the first of them is collected, so that nobody waits for work."""

    begins_early: bool
    """Whether a step is computed from `submit` on: then the next is submitted before what the last gave is told."""

    def submit(self, step: Step) -> None:
        """Have a step computed, after those that were submitted before."""

    def collect(self) -> StepResult:
        """What the oldest step gave that is not collected yet; waits for it.

        A step without sequences waits shortly for what makes a sequence ready. Raises where the step failed as a
        whole: then no cached block is to be trusted, and EngineDeadError where there will be no further step.
        """

    def keep_processors(self, seq_id: int, processors: Sequence[LogitsProcessor]) -> None:
        """Logits processors of a sequence that is about to start.

        They are Python objects of the caller, which a copy in another process would not be. Raises InvalidRequestError
        where the model runs in another process.
        """

    def check(self) -> None:
        """Raises EngineDeadError where there will be no further step, as far as can be seen now."""

    def close(self) -> None:
        """End what was started for this."""
