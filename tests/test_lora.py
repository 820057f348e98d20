"""Adapters: the reference's answers, the same bits whatever the batch, and all rows against merged weights."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, AsyncLLM, BeamSearchParams, LoRARequest, SamplingParams
from octavo.tools.recipe import save_tensors, write_model
from tests.adapters import (
    CONFIG,
    LORA_CASES,
    adapter_tensors,
    every_layer,
    largest_rank,
    lora_case,
    requests_of,
    save_adapter,
)
from tests.golden import CASES, prompt_of, read_case
from tests.preemption import preempted
from tests.test_golden import load, opened
from tests.test_invariance import PARAMS, ROWS, bits

TOLERANCE = 5e-5
WAYS: dict[str, dict[str, Any]] = {
    "batch": {},
    "one slot in chunks": {"max_loras": 1, "max_num_batched_tokens": 16},
    "reference-ops": {"ops": "torch"},
}


def load_case(case: dict[str, Any], folder: Path, **options: Any) -> LLM:
    options = {"max_loras": len(case["adapters"]), "max_lora_rank": largest_rank(case), **options}
    return load(case, folder, enable_lora=True, **options)


def asked(llm: LLM, case: dict[str, Any], requests: dict[str | None, LoRARequest | None]) -> list[Any]:
    """All of a case's prompts, each with its adapter, in one batch."""
    prompts = [prompt_of(c) for c in case["cases"]]
    adapters = [requests[c["adapter"]] for c in case["cases"]]
    answer = case["cases"][0]
    if "embedding" in answer:
        return [o.outputs.embedding for o in llm.embed(prompts, use_tqdm=False, lora_request=adapters)]
    if "scores" in answer:
        return [o.outputs.probs for o in llm.classify(prompts, use_tqdm=False, lora_request=adapters)]
    count = len(answer["output_token_ids"])
    params = SamplingParams(temperature=0, max_tokens=count, logprobs=5, prompt_logprobs=0, ignore_eos=True)
    return llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", LORA_CASES, ids=lambda p: p.stem)
def test_reference_answers(path: Path, way: str, tmp_path: Path) -> None:
    agrees(read_case(path), tmp_path, **WAYS[way])


def agrees(case: dict[str, Any], tmp_path: Path, **options: Any) -> None:
    """A model with its adapters, loaded with these options, answers as the reference does."""
    llm = load_case(case, tmp_path / "base", **options)
    for output, want in zip(asked(llm, case, requests_of(case, tmp_path)), case["cases"], strict=True):
        if "output_token_ids" not in want:
            np.testing.assert_allclose(output, want.get("embedding", want.get("scores")), atol=1e-5)
            continue
        answer = output.outputs[0]
        assert answer.token_ids == want["output_token_ids"]
        for step, top in zip(answer.logprobs, want["top_logprobs"], strict=True):
            for token, logprob in top:
                assert step[token].logprob == pytest.approx(logprob, abs=TOLERANCE)
        ids = want["prompt_token_ids"]
        given = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        assert given == pytest.approx(want["prompt_logprobs"][: len(given)], abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["all-linear", "dora", "bias", "embed-head"])
def test_in_fewer_bits(name: str, dtype: str, tmp_path: Path) -> None:
    """Log-probabilities on average as near as the base's are in that type: see tests/test_golden.py."""
    case = lora_case(f"LlamaForCausalLM--{name}")
    llm = load_case(case, tmp_path / "base", dtype=dtype)
    off = []
    for output, want in zip(asked(llm, case, requests_of(case, tmp_path)), case["cases"], strict=True):
        ids = want["prompt_token_ids"]
        given = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        off += [abs(a - b) for a, b in zip(given, want["prompt_logprobs"], strict=False)]
    assert np.mean(off) < 0.1


BASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "torch": {"ops": "torch"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "q4": {"quantization": "q4"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", BASES.values(), ids=BASES)
@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM--all-linear",
        "LlamaForCausalLM--dora",
        "LlamaForCausalLM--embed-head",
        "LlamaForCausalLM--added-tokens",
        "Qwen2MoeForCausalLM--experts",
        "JambaForCausalLM--mixed",
        "BartForConditionalGeneration--encoder-decoder",
    ],
)
def test_batch_chunks_and_preemption_leave_no_trace(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Alone, among others, preempted, after a prefix hit, in chunks; and the base as where there are no adapters."""
    case = lora_case(name)
    requests = requests_of(case, tmp_path)
    prompts = [prompt_of(c) for c in case["cases"]] * 3
    adapters = [requests[c["adapter"]] for c in case["cases"]] * 3
    llm = load_case(case, tmp_path / "base", **options)

    def run(llm: LLM, of: slice = slice(None)) -> list[Any]:
        outputs = llm.generate(prompts[of], PARAMS, use_tqdm=False, lora_request=adapters[of])
        return [bits(o) for o in outputs]

    together, count = run(llm), len(case["cases"])
    assert together[:count] * 3 == together
    assert [run(llm, slice(i, i + 1))[0] for i in range(count)] == together[:count]

    each = {str(i): (prompts[i], PARAMS, 0, adapters[i]) for i in range(len(prompts))}
    done = preempted(llm, each, after=4)
    assert [bits(done[str(i)]) for i in range(len(prompts))] == together

    assert run(load_case(case, tmp_path / "base", max_loras=1, max_num_batched_tokens=5, **options)) == together
    bare = [i for i, adapter in enumerate(adapters[:count]) if adapter is None]
    without = load(case, tmp_path / "base", **options)
    got = without.generate([prompts[i] for i in bare], PARAMS, use_tqdm=False)
    assert [bits(o) for o in got] == [together[i] for i in bare]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p in ROWS.values() else pytest.mark.slow) for p in CASES],
    ids=lambda p: p.stem,
)
def test_every_row_answers_as_merged(path: Path, tmp_path: Path) -> None:
    """Base and an adapter of every linear layer, towers' too, against the checkpoint with that merged into it."""
    case = read_case(path)
    llm = load(case, tmp_path / "base", enable_lora=True)
    adapter, merged = every_layer(llm, case, path.stem)
    assert adapter
    request = LoRARequest("every", 1, str(save_adapter(tmp_path / "every", CONFIG, adapter)))
    got = answers(llm, case, request)
    folder = write_model(case, tmp_path / "merged")
    (weights,) = folder.glob("*.safetensors")
    save_tensors(merged, folder, weights.name)
    want = answers(opened(case, folder), case, None)
    bare = answers(llm, case, None)
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) < 2e-4
    assert max(np.abs(g - b).max() for g, b in zip(got, bare, strict=True)) > 1e-2


def answers(llm: LLM, case: dict[str, Any], adapter: LoRARequest | None) -> list[Any]:
    """Numbers of each prompt: log-probabilities of its own tokens, or what it is pooled to."""
    prompts = [prompt_of(c) for c in case["cases"]]
    if "output_token_ids" not in case["cases"][0]:
        outputs = llm.encode(prompts, use_tqdm=False, lora_request=adapter)
        return [o.outputs.data.numpy() for o in outputs]
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5, prompt_logprobs=0, ignore_eos=True)
    found = []
    for output in llm.generate(prompts, params, use_tqdm=False, lora_request=adapter):
        ids = output.prompt_token_ids
        of_prompt = [e[token].logprob for e, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        of_answer = sorted(e.logprob for e in output.outputs[0].logprobs[0].values())
        finite = [p for p in of_prompt if np.isfinite(p)]
        found.append(np.array(finite + of_answer[-3:]))
    return found


def test_tensors_by_recipe() -> None:
    """Adapters of a case differ, and a stream of another tensor's name is that tensor."""
    case = lora_case("LlamaForCausalLM--embed-head")
    both, head = adapter_tensors(case, "both"), adapter_tensors(case, "head")
    name = "base_model.model.lm_head.lora_A.weight"
    assert not np.array_equal(both[name][:5], head[name][:5])
    table = "base_model.model.lm_head.base_layer.weight"
    assert np.array_equal(both[table], head[table])


LLAMA = "LlamaForCausalLM--all-linear"


def test_beams_streams_and_allowed_tokens(tmp_path: Path) -> None:
    """What is built on requests has adapters too: each answers as its prompt alone does."""
    case = lora_case(LLAMA)
    llm = load_case(case, tmp_path / "base")
    request, prompt = requests_of(case, tmp_path)["all"], prompt_of(case["cases"][1])

    one = BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True)
    (beam,) = llm.beam_search([prompt], one, lora_request=request)
    greedy = llm.generate(prompt, PARAMS, use_tqdm=False, lora_request=request)[0].outputs[0].token_ids
    assert beam.sequences[0].tokens[-4:] == greedy[:4]
    assert greedy != llm.generate(prompt, PARAMS, use_tqdm=False)[0].outputs[0].token_ids

    limited = SamplingParams(temperature=0, max_tokens=4, allowed_token_ids=[5, 6, 7], bad_words=None, ignore_eos=True)
    both = llm.generate([prompt, prompt], limited, use_tqdm=False, lora_request=[request, None])
    assert all(set(o.outputs[0].token_ids) <= {5, 6, 7} for o in both)

    async def streamed() -> list[int]:
        ids: list[int] = []
        engine = AsyncLLM(
            str(tmp_path / "base"), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB", enable_lora=True
        )
        async for output in engine.generate(prompt, PARAMS, lora_request=request):
            ids = list(output.outputs[0].token_ids)
        engine.shutdown()
        return ids

    assert asyncio.run(streamed()) == greedy


def test_prefix_cache_keeps_adapters_apart(tmp_path: Path) -> None:
    case = lora_case(LLAMA)
    llm = load_case(case, tmp_path / "base", block_size=8)
    requests, prompt = requests_of(case, tmp_path), {"prompt_token_ids": list(range(5, 45))}
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=1, ignore_eos=True)

    def hit(request: LoRARequest | None) -> tuple[int, str]:
        output = llm.generate(prompt, params, use_tqdm=False, lora_request=request)[0]
        return output.num_cached_tokens, str(output.outputs[0].logprobs)

    first = [hit(request) for request in requests.values()]
    assert [cached for cached, _ in first] == [0] * len(first)
    again = [hit(request) for request in requests.values()]
    assert [cached for cached, _ in again] == [32] * len(first)
    assert [answer for _, answer in again] == [answer for _, answer in first]
    assert len({answer for _, answer in first}) == len(first)


def test_pictures_are_seen_through_their_adapter(tmp_path: Path) -> None:
    """A tower that an adapter changes makes other rows of a picture, which are not those of the base or of others."""
    case = read_case(next(p for p in CASES if p.stem.startswith("LlavaForConditionalGeneration--1.5")))
    llm = load(case, tmp_path / "base", enable_lora=True, max_loras=2)
    adapters: list[LoRARequest | None] = [None]
    for i, seed in enumerate(("one", "other")):
        own, _ = every_layer(llm, case, seed)
        towers = {name: tensor for name, tensor in own.items() if "vision_tower" in name}
        assert towers
        adapters.append(LoRARequest(seed, i + 1, str(save_adapter(tmp_path / seed, CONFIG, towers))))
    prompt = prompt_of(next(c for c in case["cases"] if "images" in c))
    together = [bits(o) for o in llm.generate([prompt] * 3, PARAMS, use_tqdm=False, lora_request=adapters)]
    alone = [bits(llm.generate(prompt, PARAMS, use_tqdm=False, lora_request=a)[0]) for a in reversed(adapters)]
    assert alone[::-1] == together
    assert len({str(each) for each in together}) == 3


def test_more_adapters_than_there_is_room_for(tmp_path: Path) -> None:
    """They are loaded again when they are needed again, and all requests are answered as before."""
    case = lora_case(LLAMA)
    llm = load_case(case, tmp_path / "base", max_loras=1, max_cpu_loras=2)
    requests, prompt = [r for r in requests_of(case, tmp_path).values() if r], prompt_of(case["cases"][1])
    many = [LoRARequest(f"{r.lora_name}-{i}", i + 1, r.lora_path) for i in range(5) for r in requests]
    outputs = llm.generate([prompt] * len(many), PARAMS, use_tqdm=False, lora_request=many)
    assert [bits(o) for o in outputs] == [bits(o) for o in outputs[: len(requests)]] * 5
    assert len(llm.engine.executor.runner.adapters._entries) <= 2


def test_a_file_that_is_replaced_is_another_adapter(tmp_path: Path) -> None:
    case = lora_case(LLAMA)
    llm = load_case(case, tmp_path / "base")
    request, prompt = requests_of(case, tmp_path)["all"], prompt_of(case["cases"][1])
    assert request is not None

    def answer() -> list[Any]:
        return bits(llm.generate(prompt, PARAMS, use_tqdm=False, lora_request=request)[0])

    first = answer()
    louder = {n: t * np.float32(1.5) for n, t in adapter_tensors(case, "all").items()}
    save_adapter(tmp_path / "all", case["adapters"]["all"]["adapter_config"], louder)
    second = answer()
    assert second != first
    shutil.rmtree(tmp_path / "all")
    assert answer() == second  # it is still in memory
