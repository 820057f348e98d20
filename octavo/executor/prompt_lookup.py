"""Guesses by what followed the last tokens where they stood before: in texts that are edited, summed up or quoted.

The idea is Saxena's prompt lookup (2023), after the self-speculation of Yang et al. (2023, LLMA).
"""

from collections.abc import Iterable, Sequence

from octavo.executor.sequences import SequenceState
from octavo.executor.token_index import TokenIndex

MOST_PLACES = 32
"""How many of the last places are compared to find the longest likeness."""


class OwnTexts:
    """The tokens of each sequence, its prompt's and its answer's, as far as they are known.

    Args:
        sizes: lengths of runs that are looked for.
    """

    def __init__(self, *sizes: int) -> None:
        self._sizes, self._texts = sizes, dict[int, TokenIndex]()

    def of(self, state: SequenceState) -> TokenIndex:
        """Those of a sequence, with the newest."""
        text = self._texts.get(state.start.seq_id)
        if text is None:
            text = self._texts[state.start.seq_id] = TokenIndex(self._sizes)
            text.add(state.start.prompt_token_ids)
        if state.sampling is not None:
            text.add(state.sampling.output_token_ids[len(text) - len(state.start.prompt_token_ids) :])
        return text

    def end(self, seq_id: int) -> None:
        """Forget a sequence."""
        self._texts.pop(seq_id, None)


class PromptLookup:
    """A Drafter that looks in a sequence's own tokens.

    Args:
        min_tokens: how many of the last tokens must have stood before, at least.
        max_tokens: how many are compared, at most: the place with the longest likeness counts.
    """

    def __init__(self, min_tokens: int, max_tokens: int) -> None:
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._texts = OwnTexts(min_tokens)

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        return [self._propose(state, count) for state, count in zip(states, counts, strict=True)]

    def _propose(self, state: SequenceState, count: int) -> list[int]:
        if state.sampling is None:
            return []
        text = self._texts.of(state)
        best, longest = None, self._min_tokens - 1
        for place in text.places(text.run(text.end - self._min_tokens, text.end), MOST_PLACES):
            length, most = self._min_tokens, min(self._max_tokens, place)
            while length < most and text.token(place - length - 1) == text.token(text.end - length - 1):
                length += 1
            if length > longest:  # the latest of those that are equally long
                best, longest = place, length
            if length >= self._max_tokens:
                break
        if best is None:
            return []
        drafts = text.run(best, best + count)
        while len(drafts) < count:  # what is repeated goes on
            drafts.append(drafts[best + len(drafts) - text.end])
        return drafts

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            self._texts.end(seq_id)
