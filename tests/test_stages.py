"""Models whose layers are in several stages answer as their references do, and as in one."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from octavo import SamplingParams
from octavo.architectures.mllama import MllamaTower
from octavo.errors import ConfigError
from octavo.executor.rank_executor import RankExecutor
from octavo.parts import CausalLM, Embedding, Linear, Names, PreNorm, RMSNorm
from octavo.parts.stage import NoEmbedding, NoLayer
from tests.adapters import LORA_CASES
from tests.golden import CASES, case_named, prompt_of, read_case, write_model
from tests.preemption import preempted
from tests.test_golden import agrees, load, opened
from tests.test_lora import agrees as adapters_agree
from tests.thread_stages import stages_are_threads

ROWS = {p.stem.split("--")[0]: p for p in CASES}
"""A case of each row: the last one."""
DEEP = [p for p in CASES if read_case(p)["config"].get("num_hidden_layers", 2) > 2]
PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1, ignore_eos=True)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    with stages_are_threads():
        yield


@pytest.mark.parametrize("row", ROWS)
def test_two_stages(row: str, tmp_path: Path) -> None:
    agrees(read_case(ROWS[row]), tmp_path, pipeline_parallel_size=2, max_num_batched_tokens=16)


@pytest.mark.parametrize("path", DEEP, ids=lambda p: p.stem)
def test_three_stages(path: Path, tmp_path: Path) -> None:
    agrees(read_case(path), tmp_path, pipeline_parallel_size=3)


@pytest.mark.parametrize("path", LORA_CASES, ids=lambda p: p.stem)
def test_adapters(path: Path, tmp_path: Path) -> None:
    adapters_agree(read_case(path), tmp_path, pipeline_parallel_size=2)


def facts(output: Any) -> Any:
    of_prompt = [{t: e.logprob for t, e in step.items()} for step in output.prompt_logprobs[1:]]
    of_answer = [{t: e.logprob for t, e in step.items()} for step in output.outputs[0].logprobs]
    return output.outputs[0].token_ids, of_answer, of_prompt


WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8", "kv_cache_dtype": "int8"},
    "q4": {"quantization": "q4", "kv_cache_dtype": "int4"},
}
BITS = ("LlamaForCausalLM--gqa-tied", "JambaForCausalLM", "BartForConditionalGeneration--base", "SolarForCausalLM--pro")
BIT_CASES = {name: next(p for p in CASES if p.stem.startswith(name)) for name in BITS}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", BIT_CASES)
def test_bits_are_those_of_one_process(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the batch, in chunks and after a preemption: the same operations over the same rows."""
    case = read_case(BIT_CASES[name])
    prompts = [prompt_of(c) for c in case["cases"]]
    one = load(case, tmp_path, **options)
    alone = [facts(o) for o in one.generate(prompts, PARAMS, use_tqdm=False)]
    two = load(case, tmp_path, pipeline_parallel_size=2, max_num_batched_tokens=16, **options)
    assert isinstance(two.engine.executor, RankExecutor)
    assert [facts(o) for o in two.generate(prompts * 3, PARAMS, use_tqdm=False)] == alone * 3
    done = preempted(two, {str(i): (prompt, PARAMS) for i, prompt in enumerate(prompts * 2)}, after=3)
    assert [facts(done[str(i)]) for i in range(len(prompts) * 2)] == alone * 2


def test_each_stage_holds_its_share(tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--llama3-rope")
    [whole] = load(case, tmp_path).rank_weight_bytes()
    first, second = load(case, tmp_path, pipeline_parallel_size=2).rank_weight_bytes()
    assert first + second == whole
    assert max(first, second) < 0.55 * whole


def test_more_stages_than_layers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline_parallel_size=3: the model has 2 layers for 3 stages"):
        load(case_named("LlamaForCausalLM--llama3-rope"), tmp_path, pipeline_parallel_size=3)


def test_a_picture_that_cannot_be_computed_is_its_requests_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage alone knows."""
    case = read_case(next(p for p in CASES if p.stem.startswith("MllamaForConditionalGeneration--11b")))
    prompt = next(prompt_of(c) for c in case["cases"] if c.get("images"))
    llm = load(case, tmp_path, pipeline_parallel_size=2)
    good = llm.generate([prompt], PARAMS, use_tqdm=False)[0]

    def fail(tower: MllamaTower, kind: str, items: Any) -> list[torch.Tensor]:
        raise MemoryError("too large")

    llm.engine.cache.pool.reset()
    with monkeypatch.context() as patch:
        patch.setattr(MllamaTower, "forward", fail)
        [answer] = llm.generate([prompt], PARAMS, use_tqdm=False)[0].outputs
    assert answer.finish_reason == "error"
    assert "too large" in str(answer.stop_reason)
    assert facts(llm.generate([prompt], PARAMS, use_tqdm=False)[0]) == facts(good)


def model(layers: int, **options: Any) -> CausalLM:
    norm = partial(RMSNorm, 8, 1e-5)
    return CausalLM(Embedding(10, 8), lambda i: PreNorm(norm), layers, norm(), Linear(8, 10), Names({}), **options)


def test_layers_are_shared_evenly() -> None:
    shares = []
    for index in range(3):
        part = model(8)
        part.keep_stage(index, 3)
        shares.append([i for i, layer in enumerate(part.layers) if not isinstance(layer, NoLayer)])
    assert shares == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("tied", [False, True])
def test_what_the_ends_have(tied: bool) -> None:
    first, middle, last = (model(3, tied=tied) for _ in range(3))
    for index, part in enumerate((first, middle, last)):
        part.keep_stage(index, 3)
    assert set(first.weight_slots_in(torch.float32)) == {"embed.weight"}
    assert not middle.weight_slots_in(torch.float32)
    assert set(last.weight_slots_in(torch.float32)) == {"norm.weight", "embed.weight" if tied else "head.weight"}
    assert isinstance(middle.embed, NoEmbedding)
    for part, path in ((first, "head.weight"), (first, "norm.weight"), (last, "layers.0.attn.qkv.q.weight")):
        assert part.does_without(path)
    assert not first.does_without("embed.weight")


def test_values_that_are_not_finite_are_one_requests(tmp_path: Path) -> None:
    """Whose first stage has overflowed fails; who shares its beginning, in the same step or the next, does not."""
    case = case_named("LlamaForCausalLM--llama3-rope")
    folder = write_model(case, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][7] = np.inf
    save_file(tensors, folder / "model.safetensors")
    beginning = [5, 6] * 20
    prompts = [[*beginning, 9, 7, 9], [*beginning, 8], [5, 6, 9], [*beginning, 11], [*beginning, 7], [*beginning, 12]]

    params = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)  # and reads the prefix cache

    def ends(llm: Any, some: list[list[int]]) -> list[Any]:
        found = []
        for output in llm.generate([{"prompt_token_ids": p} for p in some], params, use_tqdm=False):
            answer = output.outputs[0]
            steps = [{t: e.logprob for t, e in step.items()} for step in answer.logprobs]
            found.append((answer.token_ids, steps) if answer.finish_reason == "length" else answer.finish_reason)
        return found

    one = opened(case, folder, block_size=8)
    alone = [ends(one, [prompt])[0] for prompt in prompts]
    assert [end == "error" for end in alone] == [True, False, False, False, True, False]
    for options in ({}, {"max_num_batched_tokens": 24}, {"max_num_seqs": 2}):
        two = opened(case, folder, block_size=8, pipeline_parallel_size=2, **options)
        for _ in range(3):  # what was found in the cache is sound too
            assert ends(two, prompts) == alone
        assert two.engine.cache.pool.num_free == two.engine.cache.pool.num_blocks
