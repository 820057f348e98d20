"""Prompts are cut as the `tokenizers` library cuts them, which is told so by transformers."""

from typing import Any

import pytest

from octavo.errors import InvalidRequestError
from octavo.params import PoolingParams, SamplingParams
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import FastTokenizer


@pytest.fixture(scope="module")
def inner() -> Any:
    """Words, between [CLS] and [SEP] as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {f"w{i}": i + 3 for i in range(20)}
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, **words}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


@pytest.fixture(scope="module")
def checker(inner: Any) -> InputChecker:
    return InputChecker(FastTokenizer(inner, {}, {}), 23, 16, 5)


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def reference(inner: Any, most: int, side: str, *texts: str) -> Any:
    """How the library cuts."""
    from tokenizers import Tokenizer

    twin = Tokenizer.from_str(inner.to_str())
    twin.enable_truncation(most, direction=side)
    return twin.encode(*texts)


@pytest.mark.parametrize("most", range(2, 11))
@pytest.mark.parametrize("params", [PoolingParams, SamplingParams])
def test_a_text_keeps_its_special_tokens(checker: InputChecker, inner: Any, most: int, params: Any) -> None:
    side = "left" if params is SamplingParams else "right"
    made = checker.prompt(words(7), params(truncate_prompt_tokens=most))
    assert made.token_ids == reference(inner, most, side, words(7)).ids


@pytest.mark.parametrize("most", range(3, 16))
@pytest.mark.parametrize("lengths", [(3, 9), (9, 3), (5, 5), (1, 12), (12, 1), (4, 5)])
def test_the_longer_of_a_pair_is_cut(checker: InputChecker, inner: Any, most: int, lengths: tuple[int, int]) -> None:
    texts = words(lengths[0]), words(lengths[1])
    params = PoolingParams(truncate_prompt_tokens=most)
    made = checker.prompt(checker.encode_typed_pair(*texts, params), params)
    want = reference(inner, most, "right", *texts)
    assert (made.token_ids, made.token_types) == (want.ids, want.type_ids if any(want.type_ids) else [])


@pytest.mark.parametrize("params", [PoolingParams, SamplingParams])
def test_a_side_that_is_named_cuts_whatever_is_there(checker: InputChecker, params: Any) -> None:
    whole = checker.prompt(words(7), PoolingParams()).token_ids
    for side, want in (("left", whole[-4:]), ("right", whole[:4])):
        made = checker.prompt(words(7), params(truncate_prompt_tokens=4, truncation_side=side))
        assert made.token_ids == want
    pair = PoolingParams(truncate_prompt_tokens=4, truncation_side="left")
    made = checker.prompt(checker.encode_typed_pair("w1 w2", "w3 w4", pair), pair)
    assert (made.token_ids, made.token_types) == ([2, 6, 7, 2], [0, 1, 1, 1])


def test_token_ids_are_cut_at_the_side_of_their_kind(checker: InputChecker) -> None:
    assert checker.prompt([5, 6, 7], PoolingParams(truncate_prompt_tokens=2)).token_ids == [5, 6]
    assert checker.prompt([5, 6, 7], SamplingParams(truncate_prompt_tokens=2)).token_ids == [6, 7]
    assert checker.prompt([5] * 30, PoolingParams(truncate_prompt_tokens=-1)).token_ids == [5] * 16


def test_what_cannot_be_cut_so(checker: InputChecker) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be greater than max_model_len = 16"):
        checker.prompt("w1", PoolingParams(truncate_prompt_tokens=17))
    for params in (PoolingParams, SamplingParams):
        with pytest.raises(InvalidRequestError, match="truncation_side='up' must be left or right"):
            params(truncation_side="up")
    with pytest.raises(InvalidRequestError, match=r"^This model's maximum context length is 16 tokens\."):
        checker.prompt([5] * 17, PoolingParams())
