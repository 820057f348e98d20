"""Words that may not come: found like by looking through all of them, in time that does not grow with their number."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequestError, OctavoError
from octavo.executor.bad_words import BadWords

TOKENS = st.integers(0, 3)


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=5), max_size=12), st.lists(TOKENS, max_size=30))
def test_as_by_looking_through_all(words: list[list[int]], answer: list[int]) -> None:
    found = BadWords(words)
    state = 0
    for length in range(len(answer) + 1):
        out = answer[:length]
        expected = {w[-1] for w in words if len(w) == 1 or w[:-1] == out[len(out) - len(w) + 1 :]}
        assert {*found.always(torch.device("cpu")).tolist(), *found.banned(state)} == expected
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


@pytest.mark.parametrize("count", [10, 3000])
def test_many_words_beside_a_stream(smollm: LLM, count: int) -> None:
    plain = SamplingParams(temperature=0, max_tokens=12)
    prompt = "The capital of France is"
    alone = smollm.generate(prompt, plain, use_tqdm=False)[0].outputs[0]
    words = ["Paris", *(f"w{i}" for i in range(count))]
    banned = SamplingParams(temperature=0, max_tokens=8, bad_words=words)
    other, stream = smollm.generate([prompt, prompt], [banned, plain], use_tqdm=False)
    assert "Paris" not in other.outputs[0].text
    assert stream.outputs[0].token_ids == alone.token_ids


@pytest.mark.parametrize("count", [10, 3000])
def test_a_tokenizer_that_fails_is_its_requests_error(smollm: LLM, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> list[int]:
        raise ValueError("injected")

    monkeypatch.setattr(smollm.engine.tokenizer, "encode", fails)
    asked = SamplingParams(max_tokens=4, bad_words=[f"w{i}" for i in range(count)])
    with pytest.raises(OctavoError, match="injected"):
        smollm.generate({"prompt_token_ids": [1, 2]}, asked, use_tqdm=False)
    assert not smollm.engine.has_work


def test_there_is_an_end_to_how_many() -> None:
    with pytest.raises(InvalidRequestError, match="bad_words has 30000 words"):
        SamplingParams(bad_words=["x"] * 30_000)
