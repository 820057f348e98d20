"""Words that may not come: found like by looking through all of them, in time that does not grow with their number."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.bad_words import BadWords

TOKENS = st.integers(0, 3)


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=5), max_size=12), st.lists(TOKENS, max_size=30))
def test_as_by_looking_through_all(words: list[list[int]], answer: list[int]) -> None:
    found = BadWords(words)
    state = 0
    for length in range(len(answer) + 1):
        out = answer[:length]
        expected = {w[-1] for w in words if len(w) == 1 or w[:-1] == out[len(out) - len(w) + 1 :]}
        assert {*found.always("cpu").tolist(), *found.banned(state)} == expected
        if length < len(answer):
            state = found.after(state, answer[length])
    assert bool(found) == bool(words)


def test_a_token_costs_the_same_however_many_words_there_are() -> None:
    class Counted(dict[int, int]):
        looked = 0

        def __contains__(self, key: object) -> bool:
            Counted.looked += 1
            return super().__contains__(key)

    words = [[i % 50, i // 50 % 50, i % 7, i] for i in range(20_000)]
    found = BadWords(words)
    found._next = [Counted(n) for n in found._next]
    state = 0
    for token in range(1000):
        state = found.after(state, token * token % 50)
        found.banned(state)
    assert Counted.looked < 5 * 1000
