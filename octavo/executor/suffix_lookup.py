"""Guesses by what followed the last tokens most often, in a sequence's own text and in earlier answers.

The idea is SuffixDecoding's (Oliaro et al. 2024), whose tree of suffixes has at each run of tokens how often it stood.
Here the counts are made where they are asked for, of the latest places of a run: so a text costs some bytes a token and
not a path of nodes, and the oldest answers can be forgotten.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo.executor.prompt_lookup import OwnTexts
from octavo.executor.sequences import SequenceState
from octavo.executor.token_index import SEPARATOR, TokenIndex
from octavo.speculative_config import SpeculativeConfig

SHORT, LONG = 1, 4
"""Lengths of runs whose places are known: of a longer likeness, those of the longer run are looked through."""
MOST_PLACES = 64
"""How many of the latest places count."""
MOST_TOKENS = 1 << 18
"""How many tokens of earlier answers are kept in all: about 60 MB."""


@dataclass(frozen=True)
class Limits:
    """What bounds a guess."""

    depth: int
    """Most tokens of likeness and guess together."""
    factor: float
    """How many tokens are guessed at most, for each that is alike."""
    min_prob: float
    """How often a token must have followed, as a share."""


@dataclass(frozen=True)
class Guess:
    """Tokens that may follow."""

    tokens: list[int]
    score: float
    """How many of them are expected to be right."""


NO_GUESS = Guess([], 0.0)


def guess(text: TokenIndex, last: Sequence[int], count: int, limits: Limits) -> Guess:
    """The best guess at what follows the tokens `last`, by what followed the ends of them in `text`.

    Each end of them, the longest as far as `limits.depth` tells, stood at some places. From there on the token that
    followed most often, of equals the latest, is guessed, then the one that followed that, for as long as its share of
    the places is large enough. The score is the sum of the shares; of equal scores the longer likeness's counts.

    Args:
        text: where is looked.
        last: the newest last.
        count: most tokens that are guessed.
        limits: what else bounds it.
    """
    best, lengths, alike = NO_GUESS, range(0), list[int]()
    while lengths.stop < min(len(last), limits.depth - 1) + 1:
        length = max(1, lengths.stop)
        longer = _places(text, last, length, alike)
        if alike and longer == alike:  # the same tokens follow: only how many may be guessed is another number
            lengths = range(lengths.start, length + 1)
            continue
        best = max(_follow(text, alike, _most(lengths, count, limits), limits), best, key=_score)
        lengths, alike = range(length, length + 1), longer
        if not alike:
            return best
    return max(_follow(text, alike, _most(lengths, count, limits), limits), best, key=_score)


def _most(lengths: range, count: int, limits: Limits) -> int:
    """How many tokens may be guessed after a likeness of any of these lengths."""
    most = (min(int(length * limits.factor + 1e-6), limits.depth - length) for length in lengths)
    return min(count, max(most, default=0))


def _score(guess: Guess) -> float:
    return guess.score


def _places(text: TokenIndex, last: Sequence[int], length: int, shorter: Sequence[int]) -> list[int]:
    """The latest places after the last `length` tokens; `shorter` are those of one less."""
    if length in (SHORT, LONG):
        return text.places(last[-length:], MOST_PLACES)
    token = last[-length]
    return [p for p in shorter if p - length >= text.first and text.token(p - length) == token]


def _follow(text: TokenIndex, places: Sequence[int], most: int, limits: Limits) -> Guess:
    """What followed at `places`."""
    tokens, share, score = list[int](), 1.0, 0.0
    while len(tokens) < most:
        counts, after = dict[int, int](), len(tokens)
        for place in places:  # the latest first
            if place + after < text.end and (token := text.token(place + after)) != SEPARATOR:
                counts[token] = counts.get(token, 0) + 1
        if not counts:
            break
        chosen = max(counts, key=counts.__getitem__)
        share *= counts[chosen] / len(places)
        if share < limits.min_prob:
            break
        tokens.append(chosen)
        score += share
        places = [p for p in places if p + after < text.end and text.token(p + after) == chosen]
    return Guess(tokens, score)


class SuffixLookup:
    """A Drafter that looks in a sequence's own tokens and in earlier answers, whichever gives the better guess.

    Args:
        config: its keys `suffix_decoding_...`.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self._limits = Limits(
            config.suffix_decoding_max_tree_depth,
            config.suffix_decoding_max_spec_factor,
            config.suffix_decoding_min_token_prob,
        )
        self._most_answers = config.suffix_decoding_max_cached_requests
        self._own, self._earlier = OwnTexts(SHORT, LONG), TokenIndex((SHORT, LONG))
        self._states: dict[int, SequenceState] = {}
        """Of the sequences whose answers are to be kept."""
        self._lengths = deque[int]()
        """Of the answers that are kept, each with its separator."""

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        return [self._propose(state, count) for state, count in zip(states, counts, strict=True)]

    def _propose(self, state: SequenceState, count: int) -> list[int]:
        if state.sampling is None:
            return []
        self._states[state.start.seq_id] = state
        text = self._own.of(state)
        last = text.run(text.end - self._limits.depth, text.end)
        own = guess(text, last, count, self._limits)
        return max(own, guess(self._earlier, last, count, self._limits), key=_score).tokens

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter. The answers are kept."""
        for seq_id in seq_ids:
            self._own.end(seq_id)
            state = self._states.pop(seq_id, None)
            if state is not None and state.sampling is not None and self._most_answers:
                self._keep(state.sampling.output_token_ids)

    def _keep(self, answer: Sequence[int]) -> None:
        """Keep an answer, and forget the oldest ones where there are too many."""
        answer = answer[-MOST_TOKENS + 1 :]
        self._earlier.add([*answer, SEPARATOR])
        self._lengths.append(len(answer) + 1)
        while len(self._lengths) > self._most_answers or len(self._earlier) > MOST_TOKENS:
            self._earlier.forget(self._lengths.popleft())
