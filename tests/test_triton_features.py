"""What models do with Triton's kernels beside answering: ranks and stages, chunks, guesses, adapters, pictures.

All under Triton's interpreter. Every run of the tests has the ranks; --interpreted has the others.
"""

from pathlib import Path
from typing import Any

import pytest

from octavo import SamplingParams
from octavo.executor import adapter_slots
from tests.golden import CASES, case_named, has_media, prompt_of, read_case, write_model
from tests.random_adapters import random_adapter, request
from tests.test_golden import agrees, opened
from tests.test_triton_models import SAMPLE, shortened

pytest.importorskip("triton")

KERNELS: dict[str, Any] = {"ops": "triton", "device": "cpu"}
WAYS: dict[str, dict[str, Any]] = {
    "two stages": {"pipeline_parallel_size": 2},
    "chunks": {"max_num_batched_tokens": 5},
    "guesses": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}},
    "both": {"tensor_parallel_size": 2, "max_num_batched_tokens": 16, "speculative_config": {"method": "suffix"}},
}
MEDIA = [path for path in CASES if has_media(read_case(path))]
CLOSE = 1e-4


def test_two_ranks(tmp_path: Path) -> None:
    agrees(shortened(case_named(SAMPLE)), tmp_path, **KERNELS, tensor_parallel_size=2)


@pytest.mark.interpreted
@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str, tmp_path: Path) -> None:
    agrees(shortened(case_named(SAMPLE)), tmp_path, **KERNELS, **WAYS[way])


@pytest.mark.interpreted
@pytest.mark.parametrize("path", MEDIA, ids=lambda path: path.stem)
def test_media(path: Path, tmp_path: Path) -> None:
    agrees(shortened(read_case(path)), tmp_path, **KERNELS)


@pytest.mark.interpreted
def test_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside requests without one, as the reference's operations answer."""
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    case = case_named(SAMPLE)
    folder = write_model(case, tmp_path / "model")
    prompts = [prompt_of(c) for c in (case["cases"] * 4)[:4]]
    adapters = [request("a", tmp_path), None, request("b", tmp_path), request("a", tmp_path)]
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
    answered = [
        opened(case, folder, enable_lora=True, max_loras=2, **options).generate(
            prompts, params, use_tqdm=False, lora_request=adapters
        )
        for options in (KERNELS, {"ops": "torch", "device": "cpu"})
    ]
    for ours, wanted in zip(*answered, strict=True):
        assert ours.outputs[0].token_ids == wanted.outputs[0].token_ids
        for own, other in zip(ours.outputs[0].logprobs, wanted.outputs[0].logprobs, strict=True):
            assert {t: p.logprob for t, p in own.items()} == pytest.approx(
                {t: p.logprob for t, p in other.items()}, abs=CLOSE
            )
