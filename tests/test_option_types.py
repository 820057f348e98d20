"""Options of other types than they declare, in every field: one error that names the field."""

import dataclasses
from typing import Any

import pytest
import torch

from octavo.config import EngineArgs, PoolerConfig
from octavo.errors import ConfigError
from octavo.option_types import wrong_type

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
