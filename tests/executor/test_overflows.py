"""Whether a step's values are finite is waited for with its tokens, unless something is told of them before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.ops.torch import TorchBackend
from tests.golden import case_named, write_model

NAME = "LlamaForCausalLM--llama1-keys"
PROMPTS = [{"prompt_token_ids": [3, 1, 4]}, {"prompt_token_ids": [15, 9]}]


class Flag:
    """In place of what is still on a device: notes when it is asked for."""

    def __init__(self, notes: list[str], value: Tensor) -> None:
        self._notes, self._value = notes, value

    def __bool__(self) -> bool:
        self._notes.append("is it finite")
        return bool(self._value)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the steps ask of their values, in order."""
    notes, finite, sample = list[str](), TorchBackend.finite, TorchBackend.sample

    def noted_sample(self: TorchBackend, *arguments: Any) -> Tensor:
        notes.append("sample")
        return sample(self, *arguments)

    monkeypatch.setattr(TorchBackend, "finite", lambda self, x: Flag(notes, finite(self, x)))
    monkeypatch.setattr(TorchBackend, "sample", noted_sample)
    return notes


def opened(folder: Path, **options: Any) -> LLM:
    model = write_model(case_named(NAME), folder)
    return LLM(str(model), ops="torch", device="cpu", skip_tokenizer_init=True, **options)


def test_tokens_are_chosen_before_anything_is_waited_for(tmp_path: Path, notes: list[str]) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.5, logprobs=2, frequency_penalty=0.1, ignore_eos=True)
    opened(tmp_path).generate(PROMPTS, params, use_tqdm=False)
    assert notes == ["sample", "is it finite"] * 3


def test_a_part_of_a_prompt_is_checked_too(tmp_path: Path, notes: list[str]) -> None:
    prompt = {"prompt_token_ids": list(range(1, 8))}
    opened(tmp_path, max_num_batched_tokens=3).generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    assert notes == ["is it finite", "is it finite", "sample", "is it finite"]


@pytest.mark.parametrize(
    "asks",
    [{"prompt_logprobs": 1}, {"logits_processors": [lambda ids, logits: logits]}],
    ids=["log-probabilities of a prompt", "a processor"],
)
def test_what_is_told_or_shown_is_known_to_be_finite(asks: dict[str, Any], tmp_path: Path, notes: list[str]) -> None:
    opened(tmp_path).generate(PROMPTS, SamplingParams(max_tokens=1, **asks), use_tqdm=False)
    assert notes == ["is it finite", "sample"]


@pytest.mark.parametrize("asks", [{}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2}, {"logprobs": 3}])
def test_a_token_of_values_that_are_not_finite_does_not_count(asks: dict[str, Any], tmp_path: Path) -> None:
    llm = opened(tmp_path)
    params = SamplingParams(max_tokens=4, seed=1, ignore_eos=True, **asks)
    right = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params, use_tqdm=False)]
    llm.engine.executor.runner.model.embed.weight[300] = torch.inf
    prompts = [PROMPTS[0], {"prompt_token_ids": [5, 300]}, PROMPTS[1]]
    first, broken, last = llm.generate(prompts, params, use_tqdm=False)
    assert broken.outputs[0].finish_reason == "error"
    assert not broken.outputs[0].token_ids
    assert [first.outputs[0].token_ids, last.outputs[0].token_ids] == right
