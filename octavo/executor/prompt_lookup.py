"""Guesses by what followed the last tokens where they stood before: in texts that are edited, summed up or quoted.

The idea is Saxena's prompt lookup (2023), after the self-speculation of Yang et al. (2023, LLMA).
"""

from collections.abc import Iterable, Sequence

from octavo.executor.sequences import SequenceState

MOST_PLACES = 32
"""How many of the last places are compared to find the longest likeness."""


class _Text:
    """A sequence's tokens, and where each run of `size` of them ended."""

    def __init__(self, size: int, tokens: list[int]) -> None:
        self.tokens = tokens.copy()
        self._size, self._places, self._entered = size, dict[tuple[int, ...], list[int]](), 0

    def draft(self, most: int, count: int) -> list[int]:
        """Up to `count` tokens that followed the last ones, of which `most` at most are compared."""
        tokens, size = self.tokens, self._size
        for end in range(max(size, self._entered + 1), len(tokens)):  # those that something follows
            self._places.setdefault(tuple(tokens[end - size : end]), []).append(end)
        self._entered = max(self._entered, len(tokens) - 1)
        places = self._places.get(tuple(tokens[-size:]), ())[-MOST_PLACES:] if len(tokens) > size else ()
        best, longest = None, size - 1
        for end in reversed(places):  # the latest of those that are equally long
            length = size
            while length < min(most, end) and tokens[end - length - 1] == tokens[-length - 1]:
                length += 1
            if length > longest:
                best, longest = end, length
            if length >= most:
                break
        if best is None:
            return []
        drafts = tokens[best : best + count]
        while len(drafts) < count:  # what is repeated goes on
            drafts.append(drafts[best + len(drafts) - len(tokens)])
        return drafts


class PromptLookup:
    """A Drafter that looks in a sequence's own tokens.

    Args:
        min_tokens: how many of the last tokens must have stood before, at least.
        max_tokens: how many are compared, at most: the place with the longest likeness counts.
    """

    def __init__(self, min_tokens: int, max_tokens: int) -> None:
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._texts: dict[int, _Text] = {}

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        return [self._propose(state, count) for state, count in zip(states, counts, strict=True)]

    def _propose(self, state: SequenceState, count: int) -> list[int]:
        if state.sampling is None:
            return []
        prompt, answer = state.start.prompt_token_ids, state.sampling.output_token_ids
        text = self._texts.get(state.start.seq_id)
        if text is None:
            text = self._texts[state.start.seq_id] = _Text(self._min_tokens, prompt)
        text.tokens += answer[len(text.tokens) - len(prompt) :]
        return text.draft(self._max_tokens, count)

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            self._texts.pop(seq_id, None)
