"""Measures an engine's steps, for those that decide by what steps take."""

import time
from collections.abc import Callable, Sequence

from octavo.config import EngineArgs
from octavo.engine.scheduler import ScheduledSequence
from octavo.engine.speculation import Speculation
from octavo.engine.step_budget import StepBudget


def step_budget(args: EngineArgs, max_steps: int) -> StepBudget | None:
    """What `max_step_ms` makes of each step; an answer waits for all `max_steps` that are on their way."""
    if args.max_step_ms is None:
        return None
    return StepBudget(args.max_step_ms / 1e3 / max_steps, args.max_num_batched_tokens)


class StepClock:
    """Tells what steps take: from the end of the one before, or from its own start where none was on its way.

    Args:
        budget: is told, if there is one.
        speculation: likewise.
        clock: seconds of any origin.
    """

    def __init__(
        self,
        budget: StepBudget | None,
        speculation: Speculation | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.budget, self.speculation, self.clock = budget, speculation, clock
        self._since = 0.0

    def submitted(self, num_in_flight: int) -> None:
        """A step is on its way, one of so many."""
        if num_in_flight == 1:
            self._since = self.clock()

    def collected(self, scheduled: Sequence[ScheduledSequence], apart: float, drafting: float = 0.0) -> None:
        """The oldest step is computed; so many seconds of it are no matter of its tokens, and so many went to guesses
        at what follows them."""
        since, self._since = self._since, self.clock()
        seconds = self._since - since - apart
        if self.budget is not None:
            self.budget.took(sum(entry.num_rows for entry in scheduled), seconds)
        if self.speculation is not None:
            self.speculation.stepped(scheduled, seconds - drafting)
