"""A sampling option is declared once: its check, HTTP field, flag and recommended default follow."""

import dataclasses
from typing import Any

import pytest

from octavo import LLM
from octavo.cli.flags import sampling_params_of, sampling_values_of
from octavo.cli.main import build_parser
from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams, recommended_sampling
from octavo.server.protocol import ChatRequest, CompletionRequest

DECLARED = [f for f in dataclasses.fields(SamplingParams) if f.metadata]


def test_every_field_is_declared_with_its_help() -> None:
    assert {f.name for f in dataclasses.fields(SamplingParams) if f.init} == {f.name for f in DECLARED}
    assert all(f.metadata["help"] for f in DECLARED)


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest])
def test_requests_have_a_field_for_each(model: type[CompletionRequest | ChatRequest]) -> None:
    named = {f.name for f in DECLARED if f.metadata["http"]}
    assert named <= model.model_fields.keys()
    assert all(model.model_fields[name].description for name in named)
    body: dict[str, Any] = {"prompt": "x", "messages": [], "top_k": 5, "stop": "a", "logit_bias": {"7": 2.5}}
    params = model.model_validate(body).sampling_params({"top_k": 9, "top_p": 0.5, "max_tokens": 3}, logprobs=2)
    assert (params.top_k, params.stop, params.logit_bias) == (5, ["a"], {7: 2.5})
    assert (params.top_p, params.max_tokens, params.logprobs) == (0.5, 3, 2)


def test_commands_have_a_flag_for_each() -> None:
    flags = {f.name for f in DECLARED if f.metadata["flag"]}
    arguments = [part for name in sorted(flags) for part in ("--" + name.replace("_", "-"), "1")]
    given = sampling_values_of(build_parser().parse_args(["generate", "x", *arguments]))
    assert given == {name: ["1"] if name == "stop" else 1 for name in flags}
    params = sampling_params_of(build_parser().parse_args(["generate", "x"]), {"max_new_tokens": 5, "temperature": 0.5})
    assert (params.max_tokens, params.temperature) == (256, 0.5)


@pytest.mark.parametrize("field", DECLARED, ids=lambda f: f.name)
def test_bounds_are_checked(field: dataclasses.Field[Any]) -> None:
    low, above, high = (field.metadata[name] for name in ("low", "above", "high"))
    wrong = [low - 1] if low is not None else []
    wrong += [above] if above is not None else []
    wrong += [high + 1] if high is not None else []
    for value in wrong:
        with pytest.raises(InvalidRequestError, match=f"{field.name}={value}.*(out of range|at least)"):
            SamplingParams(**{field.name: value})
    for value in ("x", True) if wrong else ():
        if field.name not in ("logprobs", "prompt_logprobs") or value is not True:  # whose True is one
            with pytest.raises(InvalidRequestError, match=f"{field.name}=.*number"):
                SamplingParams(**{field.name: value})


def test_recommendations_out_of_range_are_left_out() -> None:
    config = {"temperature": 0.6, "top_p": 0, "max_new_tokens": 0, "top_k": "many", "min_p": None, "bos_token_id": 1}
    assert recommended_sampling(config) == {"temperature": 0.6}
    assert recommended_sampling({"max_new_tokens": 7}) == {"max_tokens": 7}


def test_extra_args_are_a_dict() -> None:
    with pytest.raises(InvalidRequestError, match=r"extra_args=.* must be a dict"):
        SamplingParams(extra_args=["a"])  # type: ignore[arg-type]
    assert SamplingParams(extra_args={"a": 1}).extra_args == {"a": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "exclude each other"),
        ({"n": 129}, "n=129 is more than 128"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompletionRequest.model_validate({"prompt": "x", **body}).sampling_params({})


def test_prompts_in_two_places_are_refused(tiny: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="not both"):
        tiny.generate([1, 2], prompt_token_ids=[3, 4])
