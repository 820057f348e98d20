"""The real model: transformers' own tokens, and the same bits however a request is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput
from tests.preemption import preempt_all

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, there was a",
    "The theory of relativity states that",
    "Q: What is 2+2?\nA:",
    "In 1492,",
    "Le chat est",
    "import numpy as np\n",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "Dear Sir or Madam,",
    "Water boils at",
    "1, 1, 2, 3, 5, 8,",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
    "The mitochondria is",
    "SELECT * FROM users WHERE",
    "Roses are red,",
    "My favourite recipe for pancakes: " + "mix flour, eggs and milk; " * 20,
    "Привет, как",
    "🙂 emoji test",
    "A",
]
TOKENS = {"float32": 64, "bfloat16": 24, "auto": 24}

Result = tuple[list[int], list[list[tuple[int, float]]]]


def result(output: RequestOutput) -> Result:
    """Tokens, and log-probabilities to the last bit."""
    answer = output.outputs[0]
    return answer.token_ids, [[(t, e.logprob) for t, e in step.items()] for step in answer.logprobs or []]


def params(dtype: str) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=TOKENS[dtype], ignore_eos=True, logprobs=3)


def run(llm: LLM, prompts: list[str]) -> list[Result]:
    return [result(o) for o in llm.generate(prompts, params(llm.engine.args.dtype), use_tqdm=False)]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "auto"])
def models(request: pytest.FixtureRequest, smollm_file: Path) -> tuple[dict[str, Any], list[Result]]:
    """Engine options, and each prompt's result when it is computed alone, nothing cached."""
    options = {"model": str(smollm_file), "dtype": request.param, "kv_cache_memory": "512MiB", "max_model_len": 1024}
    llm = LLM(**options, enable_prefix_caching=False)
    return options, [run(llm, [p])[0] for p in PROMPTS]


def test_in_a_batch(models: tuple[dict[str, Any], list[Result]]) -> None:
    options, alone = models
    llm = LLM(**options, enable_prefix_caching=False)
    assert run(llm, PROMPTS[:16]) == alone[:16]
    assert run(llm, PROMPTS[16:]) == alone[16:]


def test_in_chunks_of_seven(models: tuple[dict[str, Any], list[Result]]) -> None:
    options, alone = models
    assert run(LLM(**options, max_num_batched_tokens=7, enable_prefix_caching=False), PROMPTS) == alone


def test_after_a_prefix_hit(models: tuple[dict[str, Any], list[Result]]) -> None:
    options, alone = models
    llm = LLM(**options)
    run(llm, PROMPTS)
    outputs = llm.generate(PROMPTS, params(options["dtype"]), use_tqdm=False)
    assert sum(o.num_cached_tokens for o in outputs) > 100
    assert [result(o) for o in outputs] == alone


def test_after_preemption(models: tuple[dict[str, Any], list[Result]]) -> None:
    options, alone = models
    llm = LLM(**options)
    engine = llm.engine
    for i, prompt in enumerate(PROMPTS):
        llm.requests.add(str(i), prompt, params(options["dtype"]))
    done: dict[str, RequestOutput] = {}
    steps = 0
    while engine.has_work:
        done |= {o.request_id: o for o in llm.requests.step() if o.finished}
        steps += 1
        if steps in (5, 12, 20):
            preempt_all(engine)
    assert engine.scheduler.num_preemptions >= 40
    assert [result(done[str(i)]) for i in range(len(PROMPTS))] == alone


def test_transformers_tokens(smollm: LLM, smollm_file: Path) -> None:
    """The reference reads the same file by its own code, dequantized to float32."""
    from transformers import AutoModelForCausalLM, GgufConfig

    reference = AutoModelForCausalLM.from_pretrained(
        str(smollm_file.parent),
        gguf_file=smollm_file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    for prompt, (tokens, _) in zip(PROMPTS, run(smollm, PROMPTS), strict=True):
        ids = smollm.engine.tokenizer.encode(prompt)
        with torch.inference_mode():
            # Its likeliest token after each of ours: greedily, it would have written the same.
            logits = reference(torch.tensor([ids + tokens[:-1]]), logits_to_keep=len(tokens)).logits
        assert logits[0].argmax(-1).tolist() == tokens, prompt
