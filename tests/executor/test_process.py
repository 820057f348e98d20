"""The model in another process answers with the same bits, for a case of every row, and its end is an error."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo.launch
from octavo import LLM, LoRARequest, SamplingParams
from octavo.client.local_client import LocalRequests
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.messages import Failed
from octavo.errors import CheckpointError, EngineDeadError, InvalidRequestError
from octavo.executor.process import ExecutorProcess, ProcessExecutor
from octavo.executor.step import SequenceStart, SequenceStep, Step
from octavo.launch import launch_engine
from octavo.params import PoolingParams, StructuredOutputsParams
from tests.adapters import lora_case, requests_of
from tests.golden import CASES, prompt_of, read_case
from tests.server.conftest import write_tiny
from tests.test_golden import load
from tests.test_invariance import bits

ROWS = {p.stem.split("--")[0]: p for p in CASES}
"""One case of each row: the last one, which is the fullest of most."""
USUAL = ("LlamaForCausalLM", "BartForConditionalGeneration", "MambaForCausalLM", "Qwen2ForRewardModel")
PARAMS = [
    SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1, ignore_eos=True),
    SamplingParams(
        temperature=1.5,
        top_k=50,
        top_p=0.9,
        seed=7,
        max_tokens=9,
        n=2,
        logprobs=1,
        prompt_logprobs=0,
        presence_penalty=0.5,
        logit_bias={3: 2.0},
        min_tokens=9,
    ),
]


@pytest.fixture(scope="module")
def process() -> Iterator[ExecutorProcess]:
    """One process, which loads one model after the other."""
    process = ExecutorProcess()
    yield process
    process.close()


def answers(llm: LLM, case: dict[str, Any]) -> Any:
    prompts = [prompt_of(c) for c in case["cases"]] * 2
    if "output_token_ids" not in case["cases"][0]:
        return [o.outputs.data.tolist() for o in llm.encode(prompts, PoolingParams(), use_tqdm=False)]
    return [bits(o) for params in PARAMS for o in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.parametrize("row", [pytest.param(r, marks=() if r in USUAL else pytest.mark.slow) for r in ROWS])
def test_every_row_answers_with_the_same_bits(
    row: str, process: ExecutorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = read_case(ROWS[row])
    options = {"max_num_batched_tokens": 24, "kv_cache_memory": "16MiB"}
    here = answers(load(case, tmp_path, **options), case)
    monkeypatch.setattr(octavo.launch, "launch_engine", lambda args: launch_engine(args, process))
    there = load(case, tmp_path, **options)
    assert isinstance(there.engine.executor, ProcessExecutor)
    assert answers(there, case) == here


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("process") / "tiny")


@pytest.fixture
def args(tiny_model: Path) -> EngineArgs:
    return EngineArgs(str(tiny_model), dtype="float32", kv_cache_memory="16MiB")


def run(engine: Engine, **requests: SamplingParams) -> dict[str, Any]:
    local = LocalRequests(engine)
    for name, params in requests.items():
        local.add(name, "This is a prompt.", params)
    ends: dict[str, Any] = {}
    while local.has_work:
        ends |= {o.request_id: o for o in local.step() if isinstance(o, Failed) or o.finished}
    return {n: e if isinstance(e, Failed) else [(c.token_ids, c.text) for c in e.outputs] for n, e in ends.items()}


def test_grammars_and_bad_words(process: ExecutorProcess, args: EngineArgs) -> None:
    requests = {
        "digits": SamplingParams(structured_outputs=StructuredOutputsParams(regex="[0-9]{8}"), n=2, seed=3),
        "words": SamplingParams(bad_words=["a", "the"], seed=4),
        "plain": SamplingParams(seed=5),
    }
    assert run(launch_engine(args, process), **requests) == run(launch_engine(args), **requests)


def test_values_that_no_message_can_hold_are_their_requests_error(process: ExecutorProcess, args: EngineArgs) -> None:
    wrong = SamplingParams(top_k=1 << 200, seed=1)
    ends = run(launch_engine(args, process), plain=SamplingParams(seed=5), wrong=wrong)
    assert ends["wrong"].invalid
    assert "cannot be sent" in ends["wrong"].error
    assert ends["plain"] == run(launch_engine(args), plain=SamplingParams(seed=5))["plain"]


def test_logits_processors_are_refused(process: ExecutorProcess, args: EngineArgs) -> None:
    engine = launch_engine(args, process)
    with pytest.raises(InvalidRequestError, match="logits_processors are Python objects of this process"):
        LocalRequests(engine).add("r", "Hello", SamplingParams(logits_processors=[lambda ids, logits: logits]))
    assert not engine.has_work


def test_several_steps_in_flight(process: ExecutorProcess, args: EngineArgs) -> None:
    """A prompt in two chunks, submitted before either is collected, and a third step for what comes then."""
    executor = process.load(args)
    prompt = list(range(5, 25))
    blocks = [(0, [1, 2, 3])]
    start = SequenceStart(1, prompt, sampling=SamplingParams(temperature=0))
    executor.submit(Step([start], [SequenceStep(1, 0, prompt[:9], 0, 20, blocks, is_new=True)], []))
    executor.submit(Step([], [SequenceStep(1, 0, prompt[9:], 9, 20, [(3, [])], num_samples=1)], []))
    assert executor.collect().sequences[0].token_ids == []
    [token] = executor.collect().sequences[0].token_ids
    requests = LocalRequests(launch_engine(args))
    requests.add("r", prompt, SamplingParams(temperature=0, max_tokens=1))
    [output] = requests.step()
    assert output.outputs[0].token_ids == [token]  # type: ignore[union-attr]


def test_a_model_that_cannot_be_loaded(process: ExecutorProcess, args: EngineArgs, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not say its architecture"):
        process.load(EngineArgs(str(tmp_path)))
    assert run(launch_engine(args, process), plain=SamplingParams(seed=5))


def test_a_process_that_dies_is_a_dead_engine(args: EngineArgs) -> None:
    process = ExecutorProcess()
    requests = LocalRequests(launch_engine(args, process))
    requests.add("r", "Hello", SamplingParams(max_tokens=50, ignore_eos=True))
    requests.step()
    process.process.kill()
    process.process.wait()
    with pytest.raises(EngineDeadError, match="has ended"):
        requests.step()
    process.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_it_ends_with_its_parent() -> None:
    program = (
        "import os, time; from octavo.executor.process import ExecutorProcess; "
        "process = ExecutorProcess(); print(process.process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while Path(f"/proc/{child}/exe").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["LlamaForCausalLM--added-tokens", "JambaForCausalLM--mixed"])
def test_adapters_are_loaded_there(
    name: str, process: ExecutorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = lora_case(name)
    requests = requests_of(case, tmp_path)
    adapters = [requests[c["adapter"]] for c in case["cases"]]
    prompts = [prompt_of(c) for c in case["cases"]]

    def answered(llm: LLM) -> list[Any]:
        outputs = llm.generate(prompts, PARAMS[0], use_tqdm=False, lora_request=adapters)
        return [bits(o) for o in outputs]

    options = {"enable_lora": True, "kv_cache_memory": "16MiB"}
    here = answered(load(case, tmp_path / "base", **options))
    monkeypatch.setattr(octavo.launch, "launch_engine", lambda args: launch_engine(args, process))
    there = load(case, tmp_path / "base", **options)
    assert answered(there) == here
    missing = LoRARequest("none", 9, str(tmp_path / "none"))
    with pytest.raises(InvalidRequestError, match="there is no"):
        there.generate(prompts[0], PARAMS[0], use_tqdm=False, lora_request=missing)
    assert answered(there) == here
