"""Guesses at the tokens that follow, for a step to compute them together (speculation)."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.draft_model import DraftModel
from octavo.executor.prompt_lookup import PromptLookup
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.loading.model import LoadedModel


class Drafter(Protocol):
    """A way to guess. Whatever it guesses, answers stay the same: a wrong draft costs time."""

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """For each sequence, of which all tokens are known here, up to so many tokens that may follow."""
        ...

    def end(self, seq_ids: Iterable[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        ...


def drafter_of(loaded: LoadedModel, args: EngineArgs) -> Drafter | None:
    """The drafter that `args` ask for; None for none, and on ranks that choose no tokens.

    Raises ConfigError for a model that generates nothing, and for a draft model that cannot be loaded or is of another
    vocabulary.
    """
    config = args.speculation
    if config is None:
        return None
    if loaded.info.task != "generate":
        raise ConfigError(f"speculative_config: task={loaded.info.task!r} generates no text. Leave it out.")
    if not loaded.backend.place.is_output:
        return None
    if config.method == "ngram":
        return PromptLookup(config.prompt_lookup_min, config.prompt_lookup_max)
    return DraftModel(loaded, args, config)


def propose(
    drafter: Drafter,
    vocab_size: int,
    steps: Sequence[SequenceStep],
    states: Sequence[SequenceState],
    results: Sequence[SequenceResult],
) -> None:
    """Put drafts into the `results` of those sequences for which some are wanted."""
    wanted = [
        (i, step.next_drafts)
        for i, step in enumerate(steps)
        if step.next_drafts and results[i].token_ids and results[i].error is None and not results[i].ended
    ]
    if not wanted:
        return
    made = drafter.propose([states[i] for i, _ in wanted], [count for _, count in wanted])
    for (i, _), drafts in zip(wanted, made, strict=True):
        # What the model can never choose, such as a picture's placeholder, may have no embedding either.
        results[i].drafts = list(itertools.takewhile(lambda token: 0 <= token < vocab_size, drafts))
