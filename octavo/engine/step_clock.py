"""Measures an engine's steps for its StepBudget."""

import time
from collections.abc import Callable, Sequence

from octavo.config import EngineArgs
from octavo.engine.scheduler import ScheduledSequence
from octavo.engine.step_budget import StepBudget


def step_budget(args: EngineArgs, max_steps: int) -> StepBudget | None:
    """What `max_step_ms` makes of each step; an answer waits for all `max_steps` that are on their way."""
    if args.max_step_ms is None:
        return None
    return StepBudget(args.max_step_ms / 1e3 / max_steps, args.max_num_batched_tokens)


class StepClock:
    """Tells a budget what steps take: from the end of the one before, or from its own start where none was on its way.

    Args:
        budget: is told; None measures nothing.
        clock: seconds of any origin.
    """

    def __init__(self, budget: StepBudget | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.budget, self.clock = budget, clock
        self._since = 0.0

    def submitted(self, num_in_flight: int) -> None:
        """A step is on its way, one of so many."""
        if self.budget is not None and num_in_flight == 1:
            self._since = self.clock()

    def collected(self, scheduled: Sequence[ScheduledSequence], apart: float) -> None:
        """The oldest step is computed; so many seconds of it are no matter of its tokens."""
        if self.budget is not None:
            since, self._since = self._since, self.clock()
            self.budget.took(sum(entry.num_tokens for entry in scheduled), self._since - since - apart)
