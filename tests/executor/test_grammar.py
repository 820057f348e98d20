"""Structured output: answers follow what was asked for, in a batch too, and what cannot be followed is refused."""

import json
import re
from typing import Any

import pytest

from octavo import LLM, SamplingParams, StructuredOutputsParams
from octavo.errors import InvalidRequestError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "SELECT " COLUMN " FROM t"\nCOLUMN: /[a-c]{1,3}/\n'


def params(**wanted: Any) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=3, max_tokens=60, structured_outputs=StructuredOutputsParams(**wanted))


def test_each_kind_is_followed_beside_the_others(smollm: LLM) -> None:
    plain = SamplingParams(temperature=0, max_tokens=8)
    alone = smollm.generate("The capital of France is", plain, use_tqdm=False)[0].outputs[0].token_ids
    wanted = [
        params(json=SCHEMA),
        params(json=json.dumps(SCHEMA)),
        params(regex=r"\d{3}-\d{4}"),
        params(choice=["red", "green and blue"]),
        params(grammar=GRAMMAR),
        plain,
    ]
    texts = ["A person as JSON:", "A person:", "Phone:", "A colour:", "A query:", "The capital of France is"]
    outputs = smollm.generate(texts, wanted, use_tqdm=False)
    for output in outputs[:2]:
        person = json.loads(output.outputs[0].text)
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 130
    assert re.fullmatch(r"\d{3}-\d{4}", outputs[2].outputs[0].text)
    assert outputs[3].outputs[0].text in ("red", "green and blue")
    assert re.fullmatch("SELECT [a-c]{1,3} FROM t", outputs[4].outputs[0].text)
    assert all(o.outputs[0].finish_reason == "stop" for o in outputs[:5])
    assert outputs[5].outputs[0].token_ids == alone


def test_several_answers_each_follow(smollm: LLM) -> None:
    asked = params(regex="(yes|no)")
    asked.n = 3
    answers = smollm.generate("Is water wet?", asked, use_tqdm=False)[0].outputs
    assert {a.text for a in answers} <= {"yes", "no"}


def test_any_object(smollm: LLM) -> None:
    asked = SamplingParams(
        temperature=0, max_tokens=40, structured_outputs=StructuredOutputsParams(json_object=True), stop=None
    )
    text = smollm.generate('Answer with {"a": 1}:', asked, use_tqdm=False)[0].outputs[0].text
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json": {"type": "objct"}}, "objct"),
        ({"json": "{not json"}, "structured_outputs"),
        ({"regex": "(["}, "regex"),
        ({"grammar": "start: %%%"}, "grammar"),
    ],
)
def test_what_is_not_one_is_refused_before_it_runs(smollm: LLM, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        smollm.generate("x", params(**wanted), use_tqdm=False)
    assert not smollm.engine.has_work


@pytest.mark.parametrize("wanted", [{}, {"regex": "a", "json": "{}"}, {"choice": [""]}, {"json": {"a": {1, 2}}}])
def test_contradictions(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        StructuredOutputsParams(**wanted).as_grammar()
