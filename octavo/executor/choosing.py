"""Which tokens a step's logits give each sequence: one, and one more after each draft that was right."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import failure
from octavo.executor.batch_logits import BatchLogits
from octavo.executor.grammar import late_grammars
from octavo.executor.sampler import Choice, begin_sample
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult
from octavo.executor.token_scores import TokenScores
from octavo.ops import Backend, rows_of


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sequence that gets tokens."""

    place: int
    """Of it in the step."""
    row: int
    """Of the hidden states: that of its last token, before those of its drafts."""
    drafts: list[int]

    @property
    def rows(self) -> range:
        """The rows that a token may be chosen from."""
        return range(self.row, self.row + 1 + len(self.drafts))


class Chooser:
    """Chooses tokens, which is done a row of each sequence at a time: what may come next depends on what came.

    The token at a place is the one that would be chosen there without drafts: by the same logits (a row is the same
    bits whatever is computed beside it), the same values and the same draw. A draft is right if it is that token, and
    then the next row is of the next place. So drafts change no answer, whatever the temperature.

    Args:
        backend: what samples.
        batch: processors of whole batches; None for none.
        scores: what is told of tokens.
    """

    def __init__(self, backend: Backend, batch: BatchLogits | None, scores: TokenScores) -> None:
        self._backend, self._batch, self._scores = backend, batch, scores

    def begin(
        self,
        logits: Tensor,
        sampled: Sequence[Sampled],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
        check: Callable[[], None],
    ) -> Callable[[], None]:
        """Choose tokens by `logits` `[rows, vocab]`, in which the rows of each of `sampled` follow each other.

        Nothing here waits for the device. What is returned does, and puts them into `results`. `check` says there what
        overflowed: it is called when tokens are there, before any counts.
        """
        firsts = itertools.accumulate((len(one.rows) for one in sampled), initial=0)
        begun, has_drafts = list(zip(sampled, firsts, strict=False)), logits.shape[0] > len(sampled)

        def choose(here: Sequence[tuple[Sampled, int]], after: int) -> Callable[[], None]:
            some = rows_of(logits, [first + after for _, first in here]) if has_drafts else logits
            return self._begin_next(some, [one.place for one, _ in here], states, results, check)

        take_first = choose(begun, 0)

        def take() -> None:
            here, after = begun, 0
            take_first()
            while here := [(one, first) for one, first in here if _is_right(one, after, results[one.place])]:
                after += 1
                for one, _ in here:
                    states[one.place].length += 1
                choose(here, after)()

        return take

    def _begin_next(
        self,
        logits: Tensor,
        places: list[int],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
        check: Callable[[], None],
    ) -> Callable[[], None]:
        """A token of each row of `logits`, for the sequences at `places`. See `begin`."""
        # Only here may ranks differ: the others do not sample, and nobody else knows what went wrong before.
        wanted = [k for k, i in enumerate(places) if states[i].waits_for_token and results[i].error is None]
        if len(wanted) < len(places):
            if not wanted:
                return check
            logits, places = rows_of(logits, wanted), [places[k] for k in wanted]
        samplings = [s for i in places if (s := states[i].sampling) is not None]
        chosen = [results[i] for i in places]
        if late := late_grammars([s.grammar for s in samplings]):
            for place in late:
                samplings[place].late_logits = logits[place].clone()
            on_time = [i for i in range(len(samplings)) if i not in late]
            samplings, chosen = [samplings[i] for i in on_time], [chosen[i] for i in on_time]
            if not samplings:
                return check
            logits = rows_of(logits, on_time)
        return self._begin_sample(logits, samplings, chosen, check)

    def _begin_sample(
        self,
        logits: Tensor,
        samplings: Sequence[SamplingState],
        results: Sequence[SequenceResult],
        check: Callable[[], None],
    ) -> Callable[[], None]:
        """A token of each row of `logits`, for the sequence and into the result of the same place."""
        read = begin_sample(logits, samplings, self._backend, self._batch, self._scores)

        def take() -> None:
            chosen = read()
            check()
            for sampling, result, choice in zip(samplings, results, chosen, strict=True):
                sampling.late_logits = None
                if result.error is None:
                    _accept(sampling, result, choice)

        return take

    def choose_late(self, states: Sequence[SequenceState]) -> list[SequenceResult]:
        """The tokens whose logits were kept, now that their masks are there."""
        results = [SequenceResult(s.start.seq_id) for s in states]
        samplings = [s.sampling for s in states if s.sampling is not None]
        with torch.inference_mode(), self._backend.computing():
            kept = [s.late_logits for s in samplings if s.late_logits is not None]
            self._begin_sample(torch.stack(kept), samplings, results, lambda: None)()
        return results


def _accept(sampling: SamplingState, result: SequenceResult, choice: Choice) -> None:
    result.error, result.is_invalid = choice.error, choice.is_invalid
    if choice.token_id is None:
        return
    try:
        result.ended = sampling.accept(choice.token_id)
    except BaseException as error:  # the grammar's, and so of this sequence alone
        result.error = failure(error)
        return
    result.token_ids.append(choice.token_id)
    if choice.logprobs is not None:
        result.logprobs.append(choice.logprobs)


def _is_right(one: Sampled, after: int, result: SequenceResult) -> bool:
    """Whether the draft after `after` right ones is the token that was chosen, and another may follow."""
    if after >= len(one.drafts) or result.error is not None or result.draft_overflowed or result.ended:
        return False
    return len(result.token_ids) == after + 1 and result.token_ids[after] == one.drafts[after]
