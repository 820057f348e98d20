"""How many tokens ahead are guessed: as many as are likely to give more than they cost. Integers and measured times.

Guesses (drafts) change no token and no log-probability, only how many steps an answer takes. So what is decided here
may depend on the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.config import EngineArgs
from octavo.engine.engine_request import Completion
from octavo.engine.scheduler import ScheduledSequence, Scheduler, num_right
from octavo.engine.sequence import PRIOR_RATE, Status
from octavo.engine.sequence import Sequence as TokenSequence
from octavo.executor.step import SequenceResult
from octavo.speculative_config import SpeculativeConfig

FORGETS = 0.98
"""What is left of a measurement's weight after the next one."""
PRIOR_COST = 0.1
"""What a row more is expected to cost, as a share of a step of one row, before there are measurements."""
PRIOR_WEIGHT = 2.0
"""How many measurements that counts for."""
LEARNS = 0.1
"""How much of a sequence's rate is of its newest draft."""
RECOVERS = 0.02
"""How much of it is the prior again, for each step without drafts: who has stopped to guess tries again some time."""


@dataclass
class StepCosts:
    """What steps of few rows cost: a line through measured (rows, seconds), of which old ones count less and less."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """A step has taken so long."""
        self.weight = self.weight * FORGETS + 1
        self.rows = self.rows * FORGETS + rows
        self.seconds = self.seconds * FORGETS + seconds
        self.rows_rows = self.rows_rows * FORGETS + rows * rows
        self.rows_seconds = self.rows_seconds * FORGETS + rows * seconds

    def of(self, rows: float) -> tuple[float, float]:
        """Seconds of a step of `rows`, and of a row more; (1, PRIOR_COST) as good as where nothing is known."""
        if not self.weight:
            return 1.0, PRIOR_COST
        mean_rows, mean = self.rows / self.weight, self.seconds / self.weight
        spread = max(0.0, self.rows_rows / self.weight - mean_rows**2)
        covariance = self.rows_seconds / self.weight - mean_rows * mean
        # As if the prior's slope had been measured over PRIOR_WEIGHT steps that differ by a row.
        prior = mean * PRIOR_COST / (1 + PRIOR_COST * (mean_rows - 1))
        added = PRIOR_WEIGHT / self.weight
        slope = max(0.0, (covariance + prior * added) / (spread + added))
        return max(mean + slope * (rows - mean_rows), mean * 0.1), slope


class Speculation:
    """Decides how many drafts each sequence gets, and counts what comes of them.

    Args:
        config: what was asked for.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self.config = config
        self.costs = StepCosts()
        self._step = 1.0, PRIOR_COST
        """Seconds of the last step for each of its tokens, and of a row more."""
        self.draft_seconds = 0.0
        """What it takes to guess a token."""
        self.num_drafts = 0
        """How often a sequence had drafts."""
        self.num_draft_tokens = 0
        self.accepted_by_place: list[int] = [0] * config.num_speculative_tokens
        """How many drafts were right, by their place after the last token."""
        self._running = 0

    def stepped(self, scheduled: Sequence[ScheduledSequence], seconds: float) -> None:
        """A step was computed, in this time."""
        self._running = len(scheduled)
        if sum(entry.num_tokens for entry in scheduled) <= 2 * self._running:  # one without long prompts
            self.costs.add(sum(entry.num_rows for entry in scheduled), seconds)
        whole, more = self.costs.of(self._running)
        self._step = whole / max(1, self._running), more

    def drafted(self, count: int, seconds: float) -> None:
        """So many tokens were guessed, in this time. Where none are, because they cost too much, some are again later:
        the first ones of a draft model, which reads a prompt for them, tell little of the others."""
        if count:
            self.draft_seconds += LEARNS * (seconds / count - self.draft_seconds)
        else:
            self.draft_seconds -= RECOVERS * self.draft_seconds

    def next_drafts(self, scheduler: Scheduler, entry: ScheduledSequence, completion: Completion) -> int:
        """How many drafts are wanted of what follows the tokens that a step will choose."""
        room = completion.max_tokens - len(completion.token_ids) - 2  # beside the tokens before and after them
        count = max(0, min(self.most_drafts(completion.sequence), room))
        if count and self.config.keeps_keys and not scheduler.look_ahead(entry, count):
            return 0
        return count

    def take(
        self, scheduler: Scheduler, entry: ScheduledSequence, completion: Completion, result: SequenceResult
    ) -> None:
        """See which of a sequence's drafts were right, and keep the next ones as far as it may grow."""
        sequence = entry.sequence
        if entry.drafts:
            self.verified(entry, result.token_ids)
            scheduler.verified(entry, result.token_ids)
        if sequence.status is not Status.RUNNING:
            return
        if result.draft_overflowed:
            scheduler.preempt(sequence)
            sequence.draft_rate = 0.0
            return
        room = completion.max_tokens - len(completion.token_ids) - 1
        if sequence.recompute_beyond is not None:
            room = min(room, sequence.recompute_beyond - len(sequence.tokens))
        sequence.drafts = result.drafts[: max(0, room)]

    def most_drafts(self, sequence: TokenSequence) -> int:
        """How many drafts it is worth to compute for a sequence in the next step."""
        limit = self.config.disable_by_batch_size
        if limit is not None and self._running >= limit:
            return 0
        seconds, more = self._step
        count, likely, costs = 0, sequence.draft_rate, more + self.draft_seconds
        while count < self.config.num_speculative_tokens and likely * seconds > costs:
            count += 1
            likely *= sequence.draft_rate
        if not count:
            sequence.draft_rate += RECOVERS * (PRIOR_RATE - sequence.draft_rate)
        return count

    def verified(self, entry: ScheduledSequence, token_ids: list[int]) -> None:
        """Count how many of a sequence's drafts were right."""
        right, sequence = num_right(entry.drafts, token_ids), entry.sequence
        self.num_drafts += 1
        self.num_draft_tokens += len(entry.drafts)
        for place in range(right):
            self.accepted_by_place[place] += 1
        for is_right in [1] * right + [0] * (right < len(entry.drafts)):
            sequence.draft_rate += LEARNS * (is_right - sequence.draft_rate)


def speculation(args: EngineArgs) -> Speculation | None:
    """What `args` ask for; None for no guesses."""
    config = args.speculation
    return None if config is None else Speculation(config)
