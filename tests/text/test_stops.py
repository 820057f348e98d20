"""Stop strings: found where the naive search finds them, however the text is cut, in steps that the text alone sets."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.detokenizer import StopChecker
from octavo.text.stops import StopStrings


def naive(stops: list[str], include: bool, text: str, num_new: int) -> tuple[int, str] | None:
    """The first end among the new characters; of several strings that end there, the first of the list."""
    for end in range(len(text) - num_new + 1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return (end if include else end - len(stop)), stop
    return None


def naive_withheld(stops: list[str], text: str) -> int:
    lengths = [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
    return max(lengths, default=0)


letters = st.sampled_from(["ab", "aab", "abc\n", "aé🙂"]).flatmap(lambda a: st.text(a, min_size=1, max_size=6))
pieces = st.lists(st.text("abc\né🙂", max_size=4), max_size=12)


@settings(max_examples=3000, deadline=None)
@given(st.lists(letters, min_size=1, max_size=8), st.booleans(), pieces, st.integers(0, 3))
def test_any_split_of_any_text(stops: list[str], include: bool, pieces: list[str], unchecked: int) -> None:
    """As min_tokens has it, nothing is looked for in the first pieces, and what ends there is not found later."""
    checker, text = StopChecker(stops, include), ""
    for i, piece in enumerate(pieces):
        text += piece
        if i >= unchecked:
            found = checker.check(text, len(piece))
            assert found == naive(stops, include, text, len(piece))
            if found is not None:
                return
        if i % 3:  # outputs are not taken after every token
            assert checker.withheld(text) == naive_withheld(stops, text)
    assert checker.withheld(text) == naive_withheld(stops, text)


@settings(max_examples=500, deadline=None)
@given(st.lists(letters, min_size=1, max_size=5), st.lists(st.tuples(letters, st.integers(0, 6)), max_size=5))
def test_texts_that_do_not_go_on_from_each_other(stops: list[str], texts: list[tuple[str, int]]) -> None:
    checker = StopChecker(stops, include=False)
    for text, num_new in texts:
        num_new = min(num_new, len(text))
        assert checker.check(text, num_new) == naive(stops, False, text, num_new)
        assert checker.withheld(text) == naive_withheld(stops, text)


HARD = {
    "many": ([f"<stop {i:06d}>" for i in range(100_000)], "so <stop 0 and <stop 09999 " * 400),
    "random": ([random.Random(i).randbytes(6).hex() for i in range(100_000)], random.Random(1).randbytes(5000).hex()),
    "periods": (["a" * n + "b" for n in range(1, 1500)], "a" * 10_000),
    "one long": (["ab" * 40_000 + "c"], "ab" * 5000),
    "suffixes": ([("ab" * 500 + "c")[i:] + "d" for i in range(1000)], "ab" * 5000),
    "restarts": (["a" * 999 + "b", "c"], ("a" * 998 + "x") * 10),
}


@pytest.mark.parametrize("name", HARD)
def test_steps_are_linear_in_the_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: lookups of a character among the stop strings. Nothing else is done that depends on them."""
    stops, text = HARD[name]
    checker, lookups = StopChecker(stops, include=False), 0
    real = StopStrings._range

    def counted(self: StopStrings, *arguments: object) -> object:
        nonlocal lookups
        lookups += 1
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StopStrings, "_range", counted)
    for end in range(5, len(text) + 1, 5):
        assert checker.check(text[:end], 5) is None
        checker.withheld(text[:end])
    assert lookups <= 3 * len(text)


def test_earliest_end_then_first_given() -> None:
    assert StopChecker(["bcd", "b"], include=False).check("abcd", 4) == (1, "b")
    assert StopChecker(["cd", "bcd"], include=False).check("abcd", 4) == (2, "cd")
    assert StopChecker(["bcd", "cd"], include=False).check("abcd", 4) == (1, "bcd")
    assert StopChecker(["x", "x"], include=True).check("ax", 1) == (2, "x")
