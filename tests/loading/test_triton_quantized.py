"""Quantized checkpoints through Triton's kernels under its interpreter, weights as they are stored."""

import os
from pathlib import Path
from typing import Any

import gguf
import pytest

from octavo import LLM
from tests.golden import case_named as golden_case
from tests.golden import read_case
from tests.loading.gguf_models import write_gguf
from tests.quantized import CASES, case_named, write
from tests.test_golden import answers, opened

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles for a GPU here")

SAMPLE = "MixtralForCausalLM--gptq-experts"
LONG = pytest.mark.interpreted


def method_of(case: dict[str, Any]) -> str | None:
    method: str | None = case["config"].get("quantization_config", {}).get("quant_method")
    return method


def sampled() -> list[object]:
    """All cases, of which the suite's every run has the first of each method."""
    methods, cases = set[str | None](), list[object]()
    for path in CASES:
        method = method_of(read_case(path))
        cases.append(pytest.param(path, id=path.stem, marks=LONG if method in methods else []))
        methods.add(method)
    return cases


def differences(case: dict[str, Any], folder: Path, **options: Any) -> list[float]:
    """Of a prompt's log-probabilities from the reference's."""
    write(case, folder)
    llm = opened(case, folder, ops="triton", **options)
    return [
        abs(entry[token].logprob - want)
        for output, each in zip(answers(llm, case), case["cases"], strict=True)
        for entry, token, want in zip(
            output.prompt_logprobs[1:], each["prompt_token_ids"][1:], each["prompt_logprobs"], strict=True
        )
    ]


def shortened(case: dict[str, Any]) -> dict[str, Any]:
    """The longest prompt, and two tokens of its answer."""
    longest = max(case["cases"], key=lambda each: len(each["prompt_token_ids"]))
    return {**case, "cases": [{**longest, "output_token_ids": longest["output_token_ids"][:2]}]}


def test_a_case_in_its_own_dtype(tmp_path: Path) -> None:
    given = differences(shortened(case_named(SAMPLE)), tmp_path, dtype="auto")
    assert sum(given) / len(given) < 0.05


@pytest.mark.parametrize("path", sampled())
def test_codes_and_rows_in_float32(path: Path, tmp_path: Path) -> None:
    """Nothing is rounded: what remains is the order of sums."""
    case = shortened(read_case(path))
    assert max(differences(case, tmp_path, dtype="float32", quantization=method_of(case))) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", *(pytest.param(kind, marks=LONG) for kind in ("Q5_1", "Q8_0"))])
def test_gguf_files(kind: str, tmp_path: Path) -> None:
    """In float32 they answer as the reference does with what their weights mean."""
    case = shortened(golden_case("LlamaForCausalLM--llama1-keys"))
    path = write_gguf(case, tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    stored, floats = (
        answers(LLM(str(path), skip_tokenizer_init=True, dtype="float32", kv_cache_memory="16MiB", **options), case)
        for options in ({"ops": "triton", "quantization": "gguf"}, {"ops": "torch"})
    )
    ids = case["cases"][0]["prompt_token_ids"]
    for got, want, token in zip(stored[0].prompt_logprobs[1:], floats[0].prompt_logprobs[1:], ids[1:], strict=True):
        assert got[token].logprob == pytest.approx(want[token].logprob, abs=1e-4)
