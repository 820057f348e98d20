"""Every row answers as its reference does: in one batch, in chunks, with other blocks, and rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo.executor.adapter_slots as adapter_slots
from octavo import LLM, PoolerConfig, PoolingParams, SamplingParams
from octavo.ops.native import runnable
from tests.golden import CASES, prompt_of, read_case, write_model
from tests.random_adapters import random_adapter, request

TOLERANCE = 5e-5
"""Of log-probabilities in float32. The references themselves differ by about 1e-5 between libraries."""
LOUD = {"Phi3VForCausalLM--phi-3-vision": 2e-4}
"""Cases whose answers differ by more between libraries: here the core and PyTorch's products by 8e-5 from each other,
and both by 1.2e-4 from the reference, over a prompt of 795 tokens."""
GENERATING = [path for path in CASES if "output_token_ids" in read_case(path)["cases"][0]]
VARIANTS: dict[str, dict[str, Any]] = {
    "batch": {},
    "chunks": {"max_num_batched_tokens": 7, "block_size": 8, "enable_prefix_caching": False},
    "large-blocks": {"max_num_batched_tokens": 16, "block_size": 32},
    "reference-ops": {"ops": "torch"},
}


def load(case: dict[str, Any], folder: Path, **options: Any) -> LLM:
    """A model of the case, written to `folder`."""
    return opened(case, write_model(case, folder), **options)


def opened(case: dict[str, Any], folder: Path, **options: Any) -> LLM:
    """A model of the case that lies in `folder`."""
    answer = case["cases"][0]
    if "output_token_ids" not in answer:
        options["task"] = "embedding" if "embedding" in answer else "classify" if "scores" in answer else "reward"
        if "override_pooler_config" in case:
            options["override_pooler_config"] = PoolerConfig(**case["override_pooler_config"])
    has_tokenizer = bool({"tokenizer.json", "tekken.json"} & set(case["files"]))
    options = {
        "dtype": "float32",
        "skip_tokenizer_init": not has_tokenizer,
        "kv_cache_memory": "32MiB",
        **case.get("engine_args", {}),
        **options,
    }
    return LLM(str(folder), **options)


def answers(llm: LLM, case: dict[str, Any]) -> list[Any]:
    params = [
        SamplingParams(
            temperature=0, max_tokens=len(c["output_token_ids"]), logprobs=5, prompt_logprobs=0, ignore_eos=True
        )
        for c in case["cases"]
    ]
    return llm.generate([prompt_of(c) for c in case["cases"]], params, use_tqdm=False)


def pooled(llm: LLM, case: dict[str, Any]) -> None:
    """Compare embeddings, class probabilities or rewards, all requests in one batch."""
    prompts = [c.get("text") or prompt_of(c) for c in case["cases"]]
    if "embedding" in case["cases"][0]:
        named = [PoolingParams(prompt_name=c.get("prompt_name")) for c in case["cases"]]
        outputs = llm.embed(prompts, named, use_tqdm=False)
        expanded = [c.get("expanded_token_ids", c["prompt_token_ids"]) for c in case["cases"]]
        assert [o.prompt_token_ids for o in outputs] == expanded
        got, key = [o.outputs.embedding for o in outputs], "embedding"
    elif "scores" in case["cases"][0]:
        got, key = [o.outputs.probs for o in llm.classify(prompts, use_tqdm=False)], "scores"
    else:
        got, key = [o.outputs.data.flatten() for o in llm.encode(prompts, use_tqdm=False)], "reward"
    for output, want in zip(got, case["cases"], strict=True):
        np.testing.assert_allclose(output, np.asarray(want[key]).flatten(), atol=1e-5)


def agrees(case: dict[str, Any], folder: Path, **options: Any) -> None:
    """A model of the case, written to `folder` and loaded with these options, answers as the reference does."""
    llm = load(case, folder, **options)
    if "output_token_ids" not in case["cases"][0]:
        pooled(llm, case)
        return
    tolerance = LOUD.get(f"{case['row']}--{case['variant']}", TOLERANCE)
    for output, want in zip(answers(llm, case), case["cases"], strict=True):
        answer = output.outputs[0]
        assert answer.token_ids == want["output_token_ids"]
        for step, top in zip(answer.logprobs, want["top_logprobs"], strict=True):
            for token, logprob in top:
                assert step[token].logprob == pytest.approx(logprob, abs=tolerance)
        ids = want.get("expanded_token_ids", want["prompt_token_ids"])
        assert output.prompt_token_ids == ids
        given = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        for logprob, expected in zip(given, want.get("prompt_logprobs", []), strict=False):
            assert expected is None or logprob == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("path", GENERATING, ids=lambda p: p.stem)
def test_a_decode_step_of_every_row_is_the_core_alone(path: Path, dtype: str, tmp_path: Path) -> None:
    """It is recorded, and PyTorch computes nothing between the core's operations."""
    case = read_case(path)
    llm = load(case, tmp_path, dtype=dtype)
    llm.generate([prompt_of(case["cases"][0])], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    (program,) = llm.engine.executor.runner._recorded.programs.values()
    assert program is not None
    assert program.torch_calls == []


@pytest.mark.slow
@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize("path", GENERATING, ids=lambda p: p.stem)
def test_so_is_a_decode_step_with_adapters(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it gives is what the operations give one by one, to the last bit, whatever its neighbours' adapters."""
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    case = read_case(path)
    llm = load(case, tmp_path / "model", enable_lora=True, max_loras=2)
    prompts = [prompt_of(c) for c in (case["cases"] * 4)[:4]]
    adapters = [request("a", tmp_path), None, request("b", tmp_path), request("a", tmp_path)]
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)

    def answer(of: slice) -> list[Any]:
        outputs = llm.generate(prompts[of], params, use_tqdm=False, lora_request=adapters[of])
        return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]

    together, runner = answer(slice(None)), llm.engine.executor.runner
    assert [program.torch_calls for program in runner._recorded_with_adapters.programs.values()] == [[]]
    assert answer(slice(1, 2)) == together[1:2]  # by the recording without adapters
    assert answer(slice(2, 4)) == together[2:]
    runner._recorded = runner._recorded_with_adapters = None
    assert answer(slice(None)) == together
    assert len({str(of) for of in together}) > 1


@pytest.mark.parametrize(
    "variant", ["batch", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != "batch")]
)
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_reference_answers(path: Path, variant: str, tmp_path: Path) -> None:
    agrees(read_case(path), tmp_path, **VARIANTS[variant])


ROUNDED: dict[str, tuple[dict[str, Any], float]] = {
    "bfloat16": ({"dtype": "bfloat16"}, 0.1),
    "float16": ({"dtype": "float16"}, 0.0125),
    "int8": ({"quantization": "int8"}, 0.25),
    "q4": ({"quantization": "q4"}, 1.0),
    "int8 cache": ({"kv_cache_dtype": "int8"}, 0.25),
    "int4 cache": ({"kv_cache_dtype": "int4"}, 1.0),
}
"""How far log-probabilities may be away, on average over a case's tokens.

These models are deliberately loud, and where a router's choice between two nearly equal experts falls the other way, a
single token is off by more than all the others together; so it is the mean that is bounded, at about twice the largest
that was measured. bfloat16 keeps 8 bits (largest mean 0.07, of all cases 0.014). float16 keeps 3 more, so an eighth of
that. int8 rounds weights to 7 bits of each output's largest and activations to 7 bits of 128 neighbours' largest, which
on random weights is 6 or so (0.19; of all cases 0.03). q4 keeps 4 bits of 32 neighbours: on random weights, whose bits
all count, it is a coarse model (0.75; 0.25), and tests/test_perplexity.py says what it does to a trained one. So is a
cache of int4, which keeps as many of keys and values (0.65).
"""

LOUDER = {
    "Gemma4ForConditionalGeneration--26b-a4b-text": 2.5,  # one choice of a router, of few tokens
    "Lfm2MoeForCausalLM--8b-a1b": 2.0,
    "Qwen3NextForCausalLM--80b-a3b": 1.5,
    "KimiLinearForCausalLM--48b-a3b": 1.75,
    "DeepseekV32ForCausalLM--v3.2": 1.75,
    "GlmMoeDsaForCausalLM--shared-pattern": 2.25,
    "GlmMoeDsaForCausalLM--shared-types": 2.25,
}
"""Times as far away as others may be: here a bias makes experts nearly equal, and in float16 a few tokens go to another
one (a mean of 0.022, but a median of 0.0014; q4: 1.3 and 0.7). Qwen3-Next, whose results are
multiplied by gates: 1.16 in q4; Kimi Linear, whose gates and decays are of low rank: 1.34. DeepSeek-V3.2, whose tokens
see 9 keys of each layer's choice: 1.27 in q4, and as much where the indexer alone is not rounded; 1.73 and in bfloat16
0.18 where several layers see 7 of one's choice (transformers in bfloat16: 0.14)."""
TURNED = (
    "DeepseekV32ForCausalLM--parameters",
    "DeepseekV32ForCausalLM--v3.2",
    "DeepseekV3ForCausalLM--v3",
    "Dots1ForCausalLM--llm1",
    "Ernie4_5_MoeForCausalLM--21b-a3b",
    "GlmMoeDsaForCausalLM--5",
    "GlmMoeDsaForCausalLM--shared-pattern",
    "GlmMoeDsaForCausalLM--shared-types",
    "GptOssForCausalLM--20b-bf16",
)
"""Cases in which such a choice falls the other way for an early token, which many later ones look at: their median.
So does one of an indexer's, of the few keys that tiny models may look at."""


def forced_steps(llm: LLM, cases: list[dict[str, Any]]) -> list[Any]:
    """What is likely at each step, with the reference's likeliest, on the reference's own tokens."""
    written = [c.get("expanded_token_ids", c["prompt_token_ids"]) for c in cases]
    forced = zip(cases, written, strict=True)
    prompts = [prompt_of({**c, "prompt_token_ids": ids + c["output_token_ids"][:-1]}) for c, ids in forced]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    steps = list[Any]()
    for output, of, ids in zip(llm.generate(prompts, params, use_tqdm=False), cases, written, strict=True):
        steps += zip(output.prompt_logprobs[len(ids) :], (top[0] for top in of["top_logprobs"]), strict=False)
    return steps


def first_steps(llm: LLM, cases: list[dict[str, Any]]) -> list[Any]:
    """The same of each answer's first token alone."""
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    outputs = llm.generate([prompt_of(c) for c in cases], params, use_tqdm=False)
    return [(o.outputs[0].logprobs[0], c["top_logprobs"][0][0]) for o, c in zip(outputs, cases, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("rounded", ROUNDED)
@pytest.mark.parametrize(
    "path", [p for p in CASES if "output_token_ids" in read_case(p)["cases"][0]], ids=lambda p: p.stem
)
def test_rounding_stays_close(path: Path, rounded: str, tmp_path: Path) -> None:
    """On the reference's own tokens, so that one other choice does not end the comparison."""
    case, (options, allowed) = read_case(path), ROUNDED[rounded]
    llm = load(case, tmp_path, **options)
    # Where a whole prompt is seen both ways, an answer in it would be another prompt.
    of_steps = first_steps if "causal_answer" in case["cases"][0] else forced_steps
    differences = [abs(entry[token].logprob - logprob) for entry, (token, logprob) in of_steps(llm, case["cases"])]
    assert np.isfinite(differences).all()
    average = np.median if path.stem in TURNED else np.mean
    assert average(differences) < allowed * LOUDER.get(path.stem, 1.0)
