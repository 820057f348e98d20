"""Options of other types than they declare, in every field: one error that names the field."""

import dataclasses
from typing import Any

import pytest
import torch

from octavo.config import EngineArgs, PoolerConfig
from octavo.errors import ConfigError, InvalidRequestError
from octavo.loading.hub import hub_name_in
from octavo.option_types import wrong_type
from octavo.params import BeamSearchParams, PoolingParams, SamplingParams, StructuredOutputsParams

WRONG: list[Any] = [object(), {"a": object()}, [1, "a"], "hot", b"x", 1.5, True, (), 10**30, float("nan")]
FIELDS = [f.name for f in dataclasses.fields(EngineArgs)]


def refusal(name: str, value: Any) -> str | None:
    try:
        EngineArgs(**{"model": "m", name: value})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_engine_args_of_wrong_types(name: str) -> None:
    """Each value is taken, or refused by a ConfigError that names the field; never another error."""
    refused = 0
    for value in WRONG:
        said = refusal(name, value)
        assert said is None or name in said
        refused += said is not None
    assert refused >= 3


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(PoolerConfig)])
def test_pooler_configs_of_wrong_types(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        PoolerConfig(**{name: object()})


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "model"])
def test_none_is_the_default(name: str) -> None:
    assert EngineArgs("m", **{name: None}) == EngineArgs("m")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32"), (torch.bfloat16, "bfloat16"), ("half", "half")],
)
def test_spellings_of_number_types(given: Any, dtype: str) -> None:
    assert EngineArgs("m", dtype=given).dtype == dtype


@pytest.mark.parametrize("given", ["float", "fp61", "flaot16", torch.int8])
def test_number_types_that_are_none(given: Any) -> None:
    with pytest.raises(ConfigError, match="float16"):
        EngineArgs("m", lora_dtype=given)


def test_messages_say_what_is_meant() -> None:
    with pytest.raises(ConfigError, match=r"enable_lora='yes' must be True or False, not a text\."):
        EngineArgs("m", enable_lora="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization='most' must be a number, not a text\."):
        EngineArgs("m", gpu_memory_utilization="most")  # type: ignore[arg-type]


def test_types_of_all_kinds() -> None:
    @dataclasses.dataclass
    class Options:
        texts: list[str] | None = None
        numbers: list[int] | None = None
        one: int | str = 0

    for value in ([1], "a", {"a": 1}, [None]):
        assert wrong_type(Options(texts=value), "texts") is not None  # type: ignore[arg-type]
    assert wrong_type(Options(numbers=[True]), "numbers") is not None
    assert wrong_type(Options(texts=["a"], numbers=[1]), "texts") is None
    assert "a whole number or a text" in str(wrong_type(Options(one=1.5), "one"))  # type: ignore[arg-type]


SAMPLING = [f for f in dataclasses.fields(SamplingParams) if f.init]
MORE_WRONG = [*WRONG, [None], {1: None}, {"1": "x"}, -7, float("inf"), "", [""], [True]]


@pytest.mark.parametrize("name", [f.name for f in SAMPLING])
def test_sampling_values_of_wrong_types(name: str) -> None:
    """Each is taken, or an InvalidRequestError that names the field."""
    refused = 0
    for value in MORE_WRONG:
        said = sampling_refusal(SamplingParams, {name: value})
        # An older name is told as its newer one.
        assert said is None or name in said or (name == "guided_decoding" and "structured_outputs" in said), said
        refused += said is not None
    assert refused >= len(MORE_WRONG) // 2


def sampling_refusal(cls: Any, values: dict[str, Any]) -> str | None:
    try:
        cls(**values)
    except InvalidRequestError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("cls", "given"), [(BeamSearchParams, {"beam_width": 2, "max_tokens": 3}), (PoolingParams, {})]
)
def test_other_values_of_wrong_types(cls: Any, given: dict[str, Any]) -> None:
    for f in dataclasses.fields(cls):
        assert sampling_refusal(cls, {**given, f.name: object()}) is not None, f.name


def test_no_wrong_type_is_another_error() -> None:
    for f in dataclasses.fields(StructuredOutputsParams):
        for value in MORE_WRONG:
            sampling_refusal(StructuredOutputsParams, {f.name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop": 5}, r"stop=5 must be a text or a list of texts, not int\."),
        ({"stop": ["a", 5]}, r"stop holds 5, and must be a list of texts\."),
        ({"temperature": "hot"}, r"temperature='hot' must be a number\."),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids holds 'a', and must be a list of whole numbers\."),
        ({"logit_bias": [1]}, r"logit_bias=\[1\] must be a dict from token ids to numbers\."),
        ({"logit_bias": {"a": 1.0}}, r"logit_bias holds 'a': 1\.0"),
        ({"ignore_eos": "no"}, r"ignore_eos='no' must be True or False, not a text\."),
        ({"structured_outputs": {"json": {}}}, r"must be a StructuredOutputsParams, not dict\."),
    ],
)
def test_sampling_messages(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        SamplingParams(**given)


def test_numbers_of_other_libraries_are_token_ids() -> None:
    ids: Any = torch.tensor([3, 4]).numpy()
    params = SamplingParams(stop_token_ids=ids, allowed_token_ids=ids, ignore_eos=None)  # type: ignore[arg-type]
    assert (params.stop_token_ids, params.allowed_token_ids, params.ignore_eos) == ([3, 4], [3, 4], False)
    assert [type(one) for one in params.stop_token_ids or []] == [int, int]
    assert SamplingParams(logit_bias={"5": 1}).logit_bias == {5: 1.0}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", " Did you mean Qwen/Qwen3-0.6B?"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", " Did you mean Qwen/Qwen3-0.6B?"),
        ("https://modelscope.cn/models/Qwen/Qwen3-0.6B", " Did you mean Qwen/Qwen3-0.6B?"),
        ("Qwen/Qwen3 0.6B", ""),
    ],
)
def test_addresses_of_a_hubs_pages(given: str, hint: str) -> None:
    assert hub_name_in(given) == hint
