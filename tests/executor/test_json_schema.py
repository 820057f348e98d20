"""Closed schemas: only named keys may come, and every way to combine schemas still works."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from octavo.executor.grammar_text import choice_regex, to_llguidance
from octavo.executor.json_schema import closed

llguidance = pytest.importorskip("llguidance")

INTEGER = {"type": "integer"}
BASE = {"$defs": {"Base": {"type": "object", "properties": {"id": INTEGER}, "required": ["id"]}}}


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """A vocabulary of bytes, and an end token."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return llguidance.LLTokenizer(tokenizer.to_str(), eos_token=tokenizer.token_to_id("<end>"))


def follows(tokenizer: Any, kind: str, text: str, answer: str) -> bool:
    matcher = llguidance.LLMatcher(tokenizer, to_llguidance(kind, text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.greedy_tokenize(answer)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"a": INTEGER}}, [{"a": 1}, {}], [{"a": 1, "b": 2}, {"b": 1}]),
        ({"type": "object"}, [{}, {"x": {"y": [1, "z"]}}], [[], 1]),
        ({}, [{"x": 1}, 3, "s", None], []),
        (True, [{"x": 1}, 3], []),
        ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
        ({"properties": {"a": INTEGER}, "additionalProperties": True}, [{"a": 1, "b": "x"}], [{"a": "x"}]),
        ({"properties": {"a": INTEGER}, "additionalProperties": INTEGER}, [{"a": 1, "b": 2}], [{"a": 1, "b": "x"}]),
        ({"type": "object", "additionalProperties": INTEGER}, [{"z": 1}], [{"z": "x"}]),
        ({"properties": {"a": INTEGER}, "patternProperties": {"^x_": INTEGER}}, [{"a": 1, "x_1": 2}], [{"y": 1}]),
        ({"type": "array", "items": {"properties": {"b": INTEGER}}}, [[{"b": 1}, {}]], [[{"c": 1}]]),
        ({"properties": {"a": {"properties": {"b": INTEGER}}}}, [{"a": {"b": 1}}], [{"a": {"c": 1}}]),
        ({"properties": {"a": INTEGER}, "required": ["a", "b"]}, [{"a": 1, "b": "x"}], [{"a": 1, "b": 1, "c": 1}]),
        # A property may have a keyword's name, and values are no schemas.
        (
            {"properties": {"properties": {"properties": {"allOf": INTEGER}}}},
            [{"properties": {"allOf": 1}}],
            [{"a": 1}],
        ),
        ({"const": {"properties": {"a": 1}}}, [{"properties": {"a": 1}}], [{}]),
        ({"enum": [{"properties": {}}, 2]}, [{"properties": {}}, 2], [{}]),
        # Parts of one object.
        (
            {"allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}}]},
            [{"a": 1, "b": 2}, {"b": 2}],
            [{"a": 1, "b": 2, "c": 3}],
        ),
        (
            {"allOf": [{"properties": {"a": INTEGER}}, {"properties": {"b": INTEGER}, "additionalProperties": True}]},
            [{"a": 1, "b": 1, "z": 1}],
            [{"a": "x"}],
        ),
        ({**BASE, "$ref": "#/$defs/Base", "properties": {"b": INTEGER}}, [{"id": 2, "b": 1}, {"id": 2}], [{"z": 1}]),
        (
            {**BASE, "allOf": [{"$ref": "#/$defs/Base"}], "properties": {"b": INTEGER}},
            [{"id": 1, "b": 2}],
            [{"id": 1, "c": 1}],
        ),
        (
            {**BASE, "properties": {"b": {"$ref": "#/$defs/Base", "description": "x"}}},
            [{"b": {"id": 1}}],
            [{"b": {"id": 1, "z": 1}}],
        ),
        (
            {
                "properties": {"k": {"type": "string"}},
                "anyOf": [
                    {"properties": {"a": INTEGER}, "required": ["a"]},
                    {"properties": {"b": INTEGER}, "required": ["b"]},
                ],
            },
            [{"k": "x", "a": 1}, {"k": "x", "b": 1}],
            [{"k": "x", "a": 1, "b": 1}, {"k": "x", "a": 1, "c": 1}, {"k": "x"}],
        ),
        (
            {
                "oneOf": [
                    {"type": "object", "properties": {"k": {"const": "a"}, "a": INTEGER}, "required": ["k"]},
                    {"type": "object", "properties": {"k": {"const": "b"}, "b": INTEGER}, "required": ["k"]},
                ]
            },
            [{"k": "a", "a": 1}, {"k": "b", "b": 1}],
            [{"k": "b", "a": 1}, {"k": "a", "z": 1}],
        ),
        # Recursion, through definitions and through the root.
        (
            {
                "$defs": {
                    "N": {"properties": {"v": INTEGER, "n": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}}}
                },
                "$ref": "#/$defs/N",
            },
            [{"v": 1, "n": {"v": 2, "n": None}}],
            [{"v": 1, "n": {"z": 1}}],
        ),
        (
            {"properties": {"v": INTEGER, "c": {"type": "array", "items": {"$ref": "#"}}}},
            [{"v": 1, "c": [{"v": 2, "c": []}]}],
            [{"v": 1, "c": [{"z": 1}]}],
        ),
    ],
)
def test_objects_take_the_keys_that_are_named(
    bytes_tokenizer: Any, schema: Any, good: list[Any], bad: list[Any]
) -> None:
    text = json.dumps(schema)
    for answer in good:
        assert follows(bytes_tokenizer, "json_schema", text, json.dumps(answer)), answer
    for answer in bad:
        assert not follows(bytes_tokenizer, "json_schema", text, json.dumps(answer)), answer
    assert json.dumps(schema) == text  # it is not changed


def test_whitespace_between_tokens_is_bounded(bytes_tokenizer: Any) -> None:
    schema = json.dumps({"properties": {"a": {"type": "array", "items": INTEGER}}})
    for answer in ['{"a":[1,2]}', '{"a": [1, 2]}', '{ "a" : [ 1 , 2 ] }']:
        assert follows(bytes_tokenizer, "json_schema", schema, answer), answer
    for answer in ['{\n"a":[1]}', '{  "a":[1]}', '{"a":\t[1]}', ' {"a":[1]}', '{"a":[1]} ', '{"a":[1\n]}']:
        assert not follows(bytes_tokenizer, "json_schema", schema, answer), answer


def test_parts_that_combine_without_end_are_refused() -> None:
    parts = [{"$ref": f"#/$defs/d{i}", "properties": {f"p{i}": INTEGER}} for i in range(14)]
    definitions = {
        f"d{i}": {"anyOf": [{**p, "properties": {f"q{i}{j}": {}}} for j, p in enumerate(parts)]} for i in range(14)
    }
    with pytest.raises(ValueError, match="too many ways"):
        closed({"$defs": definitions, "$ref": "#/$defs/d0", "properties": {"x": INTEGER}})


CHOICES = [
    "a",
    "ab",
    "abc",
    "é",
    "😀",
    "日本",
    'a"b',
    "a\\b",
    "a\nb",
    "\0z",
    "\x7f",
    "a/b",
    " x",
    "\u2028",
    "\\n",
    "[a]",
]
CHOICES += ["%{x}", "\t", "<|end|>", "<[5]>", "a{2}", "(?i)", "ß", "\r\n", "-", "^$", "a|b", "#", "&&", "~~"]


def test_a_choice_is_one_of_its_texts(bytes_tokenizer: Any) -> None:
    text = json.dumps([*CHOICES, *CHOICES])
    for answer in CHOICES:
        assert follows(bytes_tokenizer, "choice", text, answer), answer
    for answer in ["", "b", "A", "abcd", "aa", "SS", "n"]:
        assert not follows(bytes_tokenizer, "choice", text, answer), answer
    assert choice_regex(["a", "a"]) == "(a)"
