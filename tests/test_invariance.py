"""An answer is the same to the last bit whatever the batch around it, for a model of every row."""

from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from tests.golden import CASES, prompt_of, read_case
from tests.preemption import preempted
from tests.test_golden import load

ROWS = {p.stem.split("--")[0]: p for p in CASES if "output_token_ids" in read_case(p)["cases"][0]}
"""One case of each row that generates: the last one, which is the fullest of most."""
PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1, ignore_eos=True)


def bits(output: Any) -> list[Any]:
    """Tokens and log-probabilities, exactly."""
    answer = output.outputs[0]
    of_answer = [{t: e.logprob for t, e in step.items()} for step in answer.logprobs]
    of_prompt = [{t: e.logprob for t, e in step.items()} for step in output.prompt_logprobs[1:]]
    return [answer.token_ids, of_answer, of_prompt]


def run(llm: LLM, prompts: list[Any]) -> list[Any]:
    return [bits(o) for o in llm.generate(prompts, PARAMS, use_tqdm=False)]


WAYS = {
    "native": {},
    "torch": {"ops": "torch"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16", "kv_cache_dtype": "float16"},
    "int8": {"quantization": "int8", "kv_cache_dtype": "int8"},
    "q4": {"quantization": "q4", "kv_cache_dtype": "int4"},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("row", ROWS)
def test_batch_chunks_and_preemption_leave_no_trace(row: str, options: dict[str, Any], tmp_path: Path) -> None:
    case = read_case(ROWS[row])
    prompts = [prompt_of(c) for c in case["cases"]]
    llm = load(case, tmp_path, **options)
    together = run(llm, prompts)
    assert [run(llm, [p])[0] for p in prompts] == together
    assert run(llm, prompts * 4) == together * 4

    done = preempted(llm, {str(i): (prompt, PARAMS) for i, prompt in enumerate(prompts * 2)}, after=3)
    assert [bits(done[str(i)]) for i in range(len(prompts) * 2)] == together * 2

    chunked = load(case, tmp_path, max_num_batched_tokens=5, **options)
    assert run(chunked, prompts) == together


@pytest.mark.parametrize("options", [WAYS["native"], WAYS["bfloat16"], WAYS["int8"]], ids=str)
def test_the_number_of_threads_leaves_no_trace(options: dict[str, Any], tmp_path: Path) -> None:
    """Of prefill and of recorded steps."""
    case = read_case(ROWS["LlamaForCausalLM"])
    prompts = [prompt_of(c) for c in case["cases"]] * 2
    one, *others = (run(load(case, tmp_path, threads=n, **options), prompts) for n in (1, 2, 3, 7, 16))
    assert all(other == one for other in others)


def test_a_sequence_that_grows_long_turns_anew(tmp_path: Path) -> None:
    """LongRoPE's other table serves the whole of a sequence that passes the original length, as without any cache."""
    case = read_case(next(p for p in CASES if "longrope" in p.stem))
    llm = load(case, tmp_path)
    prompt = case["cases"][-1]["prompt_token_ids"][:25]
    params = SamplingParams(temperature=0, max_tokens=16, logprobs=0, ignore_eos=True)
    grown = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0].outputs[0]
    assert len(prompt) < 32 < len(prompt) + 16  # it does pass
    one = SamplingParams(temperature=0, max_tokens=1, logprobs=0, ignore_eos=True)
    for i, token in enumerate(grown.token_ids):
        fresh = llm.generate({"prompt_token_ids": prompt + grown.token_ids[:i]}, one, use_tqdm=False)[0].outputs[0]
        assert fresh.token_ids == [token]
        assert fresh.logprobs[0][token].logprob == grown.logprobs[i][token].logprob
