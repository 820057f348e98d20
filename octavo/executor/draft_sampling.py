"""How guesses are chosen: as the tokens themselves would be."""

from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.params import SamplingParams

SAME = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Sampling values that whoever guesses follows too, with the same draws: so it is right more often."""


def draft_sampling(state: SequenceState) -> SamplingState:
    """The sampling values of a sequence for its guesses, which has seen none of its answer."""
    assert state.sampling is not None
    params = SamplingParams(**{name: getattr(state.sampling.params, name) for name in SAME})
    return SamplingState(params, state.sampling.seed, state.start.prompt_token_ids, frozenset())
