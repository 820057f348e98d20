"""Structural tags: which texts follow them, with marks that are text and marks that are special tokens."""

import json
from typing import Any

import llguidance
import pytest

from octavo.executor.grammar_text import special_tokens, to_llguidance

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = {"begin": "<call=f>", "content": {"type": "json_schema", "json_schema": CITY}, "end": "</call>"}
NOTE = {"begin": "<call=g>", "content": {"type": "any_text"}, "end": "</call>"}
TRIGGERED = {"type": "triggered_tags", "triggers": ["<call="], "tags": [CALL, NOTE]}
LEGACY = {"structures": [{"begin": "<call=f>", "schema": CITY, "end": "</call>"}], "triggers": ["<call="]}
RIGHT, WRONG = '{"city": "Ulm"}', '{"town": 5}'


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Letters as bytes, and two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>", "<|call|>", "<|end|>"])
    return llguidance.LLTokenizer(inner.to_str(), eos_token=256), inner


def follows(tokenizer: Any, tag: dict[str, Any], text: str) -> bool:
    """Whether a text may come, and end."""
    own, inner = tokenizer
    grammar = to_llguidance("structural_tag", json.dumps(tag), special_tokens(own))
    matcher = llguidance.LLMatcher(own, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = inner.encode(text).ids
    return matcher.validate_tokens([*ids, 256]) == len(ids) + 1


@pytest.mark.parametrize(
    ("tag", "right", "wrong"),
    [
        (
            {"format": TRIGGERED},
            ["", "Hi", f"a<call=f>{RIGHT}</call>b<call=g>x\n</call>", "1 < 2"],
            [f"<call=f>{WRONG}"],
        ),
        (LEGACY, ["", f"So: <call=f>{RIGHT}</call>.", "no"], [f"<call=f>{WRONG}</call>", f"<call=h>{RIGHT}</call>"]),
        ({"format": {**TRIGGERED, "at_least_one": True}}, [f"<call=f>{RIGHT}</call> and"], ["", "a<call=g>b</call>"]),
        (
            {"format": {**TRIGGERED, "stop_after_first": True}},
            ["none", f"a<call=f>{RIGHT}</call>"],
            [f"a<call=f>{RIGHT}</call>b"],
        ),
        (
            {"format": {"type": "tags_with_separator", "tags": [{"type": "tag", **CALL}], "separator": ", "}},
            ["", f"<call=f>{RIGHT}</call>", f"<call=f>{RIGHT}</call>, <call=f>{RIGHT}</call>"],
            [f"<call=f>{RIGHT}</call>, ", "x"],
        ),
        (
            {
                "format": {
                    "type": "sequence",
                    "elements": [
                        {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"},
                        {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, CALL | {"type": "tag"}]},
                        {"type": "optional", "content": {"type": "regex", "pattern": "[0-9]+"}},
                    ],
                }
            },
            ["<think>a<b>\n</think>yes", f"<think></think><call=f>{RIGHT}</call>42"],
            ["yes", "<think>a</think>no", "<think>a</think>yes4x"],
        ),
        (
            {"format": {"type": "plus", "content": {"type": "grammar", "grammar": 'start: "ab" | "c"'}}},
            ["ab", "cab"],
            ["", "b"],
        ),
    ],
)
def test_texts_that_follow(tokenizer: Any, tag: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not follows(tokenizer, tag, text)] == []
    assert [text for text in wrong if follows(tokenizer, tag, text)] == []


def test_marks_that_are_special_tokens(tokenizer: Any) -> None:
    call = {**CALL, "begin": '<|call|>{"name": "f", "arguments": ', "end": "}<|end|>"}
    for tag in (
        {"format": {"type": "triggered_tags", "triggers": ["<|call|>"], "tags": [call]}},
        {"structures": [{"begin": call["begin"], "schema": CITY, "end": call["end"]}], "triggers": ["<|call|>"]},
    ):
        assert follows(tokenizer, tag, f'So <|call|>{{"name": "f", "arguments": {RIGHT}}}<|end|>.')
        assert not follows(tokenizer, tag, f'<|call|>{{"name": "g", "arguments": {RIGHT}}}<|end|>')
        assert not follows(tokenizer, tag, f'<|call|>{{"name": "f", "arguments": {RIGHT}}}')
    note = {"type": "tag", "begin": "<|call|>", "content": {"type": "any_text"}, "end": "done<|end|>"}
    assert follows(tokenizer, {"format": note}, "<|call|>we are done<|end|>")
    assert not follows(tokenizer, {"format": note}, "<|call|>we are<|end|>")


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({"format": {"type": "mystery"}}, "type 'mystery' is unknown; const_string"),
        ({}, "type None is unknown"),
        ([], "JSON object"),
        ({"format": {**TRIGGERED, "triggers": ["<other"]}}, "begins with none of the triggers"),
        ({"structures": [], "triggers": ["a"]}, "needs structures"),
        ({"format": {"type": "tag", "begin": 5}}, "needs begin, a text"),
        ({"format": {"type": "tag", "begin": "a", "end": [5]}}, "the end of a tag"),
        ({"format": {"type": "or", "elements": []}}, "needs elements"),
        ({"format": {"type": "json_schema"}}, "needs json_schema"),
        ({"format": {"type": "star"}}, "needs content"),
    ],
)
def test_what_is_none(tag: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_llguidance("structural_tag", json.dumps(tag))
