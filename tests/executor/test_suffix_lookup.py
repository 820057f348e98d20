"""Suffix decoding: its guesses are those of a search through all texts, and what it keeps is bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.executor import suffix_lookup
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceStart
from octavo.executor.suffix_lookup import LONG, SHORT, Limits, SuffixLookup, guess
from octavo.executor.token_index import SEPARATOR, TokenIndex
from octavo.params import SamplingParams
from octavo.speculative_config import speculative_config

TEXT = st.lists(st.integers(0, 3), max_size=suffix_lookup.MOST_PLACES // 4)
LIMITS = st.builds(Limits, st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.2, 0.6]))


def places(texts: list[list[int]], run: list[int]) -> list[int]:
    """Where a run ends in texts, each of which ends with a separator, the latest first."""
    whole = [token for text in texts for token in (*text, SEPARATOR)]
    return [i for i in range(len(whole), len(run) - 1, -1) if whole[i - len(run) : i] == run]


def naive(texts: list[list[int]], last: list[int], count: int, limits: Limits) -> tuple[list[int], float]:
    """The definition, by looking for whole runs, each time anew."""
    best: tuple[list[int], float] = [], 0.0
    for length in range(1, min(len(last), limits.depth - 1) + 1):
        run, share, score = last[-length:], 1.0, 0.0
        while len(run) - length < min(count, int(length * limits.factor + 1e-6), limits.depth - length):
            after = {token: places(texts, [*run, token]) for token in range(4)}
            chosen = max(after, key=lambda token: (len(after[token]), after[token][:1]))
            if not after[chosen]:
                break
            share *= len(after[chosen]) / len(places(texts, run))
            if share < limits.min_prob:
                break
            run.append(chosen)
            score += share
        if score >= best[1]:
            best = run[length:], score
    return best


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=3), st.integers(1, 8), LIMITS)
def test_guesses_are_those_of_a_search(texts: list[list[int]], last: list[int], count: int, limits: Limits) -> None:
    """What stood last may be new, or all of a text but its end."""
    last = last + texts[0][: -len(last) - 1]
    index = TokenIndex((SHORT, LONG))
    for text in texts:
        index.add([*text, SEPARATOR])
    found = guess(index, last[-limits.depth :], count, limits)
    tokens, score = naive(texts, last, count, limits)
    assert found.score == pytest.approx(score)
    assert found.tokens == tokens


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=12), st.data())
def test_an_index_is_one_of_what_is_left(texts: list[list[int]], data: st.DataObject) -> None:
    """In whatever pieces texts come, and whatever is forgotten between them."""
    index, kept, first = TokenIndex((1, 3)), list[int](), 0
    for text in texts:
        index.add(text)
        kept += text
        gone = data.draw(st.integers(0, len(kept)))
        index.forget(gone)
        kept, first = kept[gone:], first + gone
        assert (index.first, len(index), index.run(index.first, index.end)) == (first, len(kept), kept)
        for size in (1, 3):
            for run in ([0] * size, kept[:size], kept[-size:]):
                places = [first + i for i in range(size, len(kept)) if kept[i - size : i] == run and len(run) == size]
                assert index.places(run, 100) == places[::-1]
                assert index.places(run, 2) == places[::-1][:2]


def state(seq_id: int, prompt: list[int], answer: list[int]) -> SequenceState:
    sampling = SamplingState(SamplingParams(), 0, prompt, frozenset())
    sampling.output_token_ids = answer
    return SequenceState(SequenceStart(seq_id, prompt), sampling=sampling)


def lookup(**options: object) -> SuffixLookup:
    return SuffixLookup(speculative_config({"method": "suffix", **options}))


def test_an_earlier_answer_is_guessed_from() -> None:
    """Where it began alike, as much as there is likeness; forgotten in the order in which they came."""
    drafter, answer = lookup(suffix_decoding_max_cached_requests=2), list(range(100, 130))
    assert drafter.propose([state(1, [1, 2], answer)], [8]) == [[]]
    drafter.end([1, 77])
    begun = state(2, [3], [100, 101, 102])
    assert drafter.propose([begun], [8]) == [[103, 104, 105]]
    assert drafter.propose([begun], [2]) == [[103, 104]]
    drafter.propose([state(3, [9], [5]), state(4, [9], [6])], [8, 8])
    drafter.end([3, 4])
    assert drafter.propose([begun], [8]) == [[]]
    alone = lookup(suffix_decoding_max_cached_requests=0)
    alone.propose([state(1, [1, 2], answer)], [8])
    alone.end([1])
    assert alone.propose([begun], [8]) == [[]]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffix_lookup, "MOST_TOKENS", 50)
    drafter = lookup()
    for seq_id in range(40):
        drafter.propose([state(seq_id, [1], list(range(seq_id, seq_id + 3 * seq_id)))], [8])
        drafter.end([seq_id])
        assert len(drafter._earlier) <= 50
    index = drafter._earlier
    assert all(len(latest) <= 50 for latest in index._latest.values())
    assert len(index._tokens) <= 200


def test_frequent_tokens_go_first() -> None:
    text = [7, 8, 1, 7, 8, 2, 7, 8, 1, 5, 7, 8]
    assert lookup().propose([state(1, text, [])], [8]) == [[1, 5]]  # as many as are alike
    assert lookup(suffix_decoding_max_spec_factor=2).propose([state(1, text, [])], [8]) == [[1, 5, 7, 8]]
    assert lookup(suffix_decoding_min_token_prob=0.6).propose([state(1, text, [])], [8]) == [[1]]
    assert lookup(suffix_decoding_min_token_prob=0.7).propose([state(1, text, [])], [8]) == [[]]
    assert lookup(suffix_decoding_max_tree_depth=3).propose([state(1, text, [])], [8]) == [[1]]
