"""Steps that begin when they are submitted, as on GPUs, which compute them while those before are told of."""

import random
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.executor.runner import ModelRunner
from octavo.ops.torch import TorchBackend
from tests.golden import case_named, write_model

NAME = "LlamaForCausalLM--llama1-keys"


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchBackend, "runs_aside", True)


def opened(folder: Path, **options: Any) -> LLM:
    model = write_model(case_named(NAME), folder)
    return LLM(str(model), ops="torch", device="cpu", skip_tokenizer_init=True, **options)


def test_the_next_step_has_begun_when_tokens_are_told(
    tmp_path: Path, early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, sample = list[str](), TorchBackend.sample

    def noted_sample(self: TorchBackend, *arguments: Any) -> Tensor:
        notes.append("sample")
        return sample(self, *arguments)

    monkeypatch.setattr(TorchBackend, "sample", noted_sample)
    monkeypatch.setattr(TorchBackend, "await_ranks", lambda self: notes.append("wait"))
    llm = opened(tmp_path)
    llm.requests.add("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    seen = []
    while llm.requests.has_work:
        llm.requests.step()
        seen.append(notes[:])
        notes.clear()
    # The first step finds nothing on its way; the second's tokens are chosen before the first's are told.
    wait = ["wait", "wait"]  # for tokens, and whether values are finite
    assert seen == [["sample", *wait, "sample"], [*wait, "sample"], wait]


def run(llm: LLM, seed: int) -> dict[str, list[Any]]:
    """Requests that come and go at random; what was told of those that were not aborted."""
    draw, told, aborted = random.Random(seed), dict[str, list[Any]](), set[str]()
    for i in range(60):
        if i < 20:
            prompt = [draw.randrange(1, 250) for _ in range(draw.randint(1, 12))]
            temperature, n = draw.choice([(0, 1), (0.8, 1), (0.8, 3)])
            params = SamplingParams(
                temperature=temperature, n=n, max_tokens=draw.randint(1, 7), seed=i,
                repetition_penalty=draw.choice([1.0, 1.3]), ignore_eos=True, logprobs=2,
                stop_token_ids=[draw.randrange(250) for _ in range(8)],
            )  # fmt: skip
            llm.requests.add(str(i), prompt, params)
        if draw.random() < 0.15:
            aborted.add(str(gone := draw.randrange(20)))
            llm.requests.abort([str(gone)])
        for output in llm.requests.step() if llm.requests.has_work else ():
            if output.finished:
                told[output.request_id] = [(o.token_ids, o.cumulative_logprob, o.finish_reason) for o in output.outputs]
    while llm.requests.has_work:
        for output in llm.requests.step():
            if output.finished:
                told[output.request_id] = [(o.token_ids, o.cumulative_logprob, o.finish_reason) for o in output.outputs]
    return {name: value for name, value in told.items() if name not in aborted}


@pytest.mark.parametrize(
    "options", [{}, {"max_num_batched_tokens": 6}, {"kv_cache_memory": "48KiB", "block_size": 4}], ids=str
)
def test_answers_are_the_same_bits(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where prompts come in parts, and where requests are preempted."""
    expected = run(opened(tmp_path / "late", **options), 7)
    monkeypatch.setattr(TorchBackend, "runs_aside", True)
    llm = opened(tmp_path / "early", **options)
    free = llm.engine.cache.pool.num_free
    assert run(llm, 7) == expected
    assert len(expected) > 8
    assert ("kv_cache_memory" in options) == (llm.engine.scheduler.num_preemptions > 0)
    assert not llm.engine.scheduler.in_flight
    assert llm.engine.cache.pool.num_free == free


def test_a_step_that_fails_as_a_whole_fails_where_it_is_waited_for(
    tmp_path: Path, early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, count = ModelRunner.begin, 0

    def failing(self: ModelRunner, *step_of: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise MemoryError("the second step")
        return begin(self, *step_of)

    monkeypatch.setattr(ModelRunner, "begin", failing)
    llm = opened(tmp_path)
    llm.requests.add("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    [first] = llm.requests.step()
    assert len(first.outputs[0].token_ids) == 1  # what the first gave is told all the same
    with pytest.raises(MemoryError, match="the second step"):
        llm.requests.step()
