"""Guesses at the tokens that follow, for a step to compute them together (speculation)."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.draft_model import DraftModel
from octavo.executor.head_drafting import HeadDrafter, is_wanted
from octavo.executor.medusa_drafting import MedusaDrafter
from octavo.executor.prompt_lookup import PromptLookup
from octavo.executor.runner import ModelRunner
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.executor.suffix_lookup import SuffixLookup
from octavo.loading.model import LoadedModel


class Drafter(Protocol):
    """A way to guess. Whatever it guesses, answers stay the same: a wrong draft costs time."""

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """For each sequence, of which all tokens are known here, up to so many tokens that may follow."""
        ...

    def end(self, seq_ids: Iterable[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        ...


@runtime_checkable
class HiddenDrafter(Drafter, Protocol):
    """A Drafter that reads what the model has made of tokens."""

    def read(
        self,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
        hidden: Tensor,
    ) -> None:
        """Take in a step, before anything is asked of what follows it: every step of the model.

        Args:
            steps, states, results: of the step's sequences.
            hidden: `[rows, values]` of its tokens and guesses, in their order, as `CausalLM.read_rows` has them; of the
                caller, who overwrites it.
        """
        ...


def drafter_of(loaded: LoadedModel, args: EngineArgs, runner: ModelRunner) -> Drafter | None:
    """The drafter that `args` ask for; None for none, and on ranks that have no part in guessing.

    Raises ConfigError for a model that generates nothing, and for a draft model that cannot be loaded or is of another
    vocabulary.
    """
    config = args.speculation
    if config is None:
        return None
    if loaded.info.task != "generate":
        raise ConfigError(f"speculative_config: task={loaded.info.task!r} generates no text. Leave it out.")
    place = loaded.backend.place
    if not (place.is_last_stage if config.reads_hidden else place.is_output):
        return None
    if config.method == "ngram":
        return PromptLookup(config.prompt_lookup_min, config.prompt_lookup_max)
    if config.method == "suffix":
        return SuffixLookup(config)
    if config.method == "draft_model":
        return DraftModel(loaded, args, config)
    if loaded.medusa is not None:
        return MedusaDrafter(loaded.medusa, loaded.backend)
    return HeadDrafter(loaded, runner)


def propose(
    drafter: Drafter,
    vocab_size: int,
    steps: Sequence[SequenceStep],
    states: Sequence[SequenceState],
    results: Sequence[SequenceResult],
) -> None:
    """Put drafts into the `results` of those sequences for which some are wanted."""
    wanted = [(i, step.next_drafts) for i, step in enumerate(steps) if is_wanted(step, results[i])]
    if not wanted:
        return
    made = drafter.propose([states[i] for i, _ in wanted], [count for _, count in wanted])
    for (i, _), drafts in zip(wanted, made, strict=True):
        # What the model can never choose, such as a picture's placeholder, may have no embedding either.
        results[i].drafts = list(itertools.takewhile(lambda token: 0 <= token < vocab_size, drafts))
