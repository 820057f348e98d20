"""Blocks that come back from a folder give the bits that computing gives, for a model of every row, after a restart."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.engine import Engine
from octavo.executor import adapter_slots, block_store
from octavo.executor.block_tiers import ENDING
from tests.golden import prompt_of, read_case, write_model
from tests.preemption import preempted
from tests.random_adapters import random_adapter, request
from tests.test_golden import opened
from tests.test_invariance import ROWS, WAYS
from tests.thread_stages import stages_are_threads

PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
BLOCK = 4


def bits(output: Any) -> Any:
    answer = output.outputs[0]
    return answer.token_ids, [{t: e.logprob for t, e in step.items()} for step in answer.logprobs]


def run(llm: LLM, prompts: list[Any], **more: Any) -> list[Any]:
    return [bits(o) for o in llm.generate(prompts, PARAMS, use_tqdm=False, **more)]


def engine_of(llm: LLM) -> Engine:
    engine = llm.llm_engine.engine
    assert isinstance(engine, Engine)
    return engine


def close(llm: LLM) -> None:
    """End its engine, once all is written."""
    engine_of(llm).executor.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + ENDING))


def kept(llm: LLM) -> bool:
    return engine_of(llm).offload is not None


@pytest.mark.slow
@pytest.mark.parametrize("way", ["native", "int8", "q4"])
@pytest.mark.parametrize("row", ROWS)
def test_a_restart_leaves_no_trace(row: str, way: str, tmp_path: Path) -> None:
    case, store = read_case(ROWS[row]), tmp_path / "store"
    prompts = [prompt_of(c) for c in case["cases"]]
    folder = write_model(case, tmp_path / "model")
    options = {"block_size": BLOCK, "kv_offload": str(store), **WAYS[way]}
    first = opened(case, folder, **options)
    expected = run(first, prompts)
    close(first)
    if not kept(first):
        assert engine_of(first).executor.shape.recurrent
        assert not files(store)
        return
    assert files(store)
    again = opened(case, folder, **options)
    assert run(again, prompts) == expected
    offload = engine_of(again).offload
    assert offload is not None
    assert offload.hits > 0 or all(len(c.get("prompt_token_ids", ())) <= BLOCK for c in case["cases"])
    done = preempted(again, {str(i): (prompt, PARAMS) for i, prompt in enumerate(prompts * 2)}, after=3)
    assert [bits(done[str(i)]) for i in range(2 * len(prompts))] == expected * 2
    close(again)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    case = read_case(ROWS["LlamaForCausalLM"])
    return case, write_model(case, tmp_path_factory.mktemp("offload") / "model")


PROMPTS = [{"prompt_token_ids": [7 + (i * j) % 50 for i in range(45)]} for j in (1, 3, 7)]


def engine(llama: tuple[dict[str, Any], Path], **options: Any) -> LLM:
    return opened(*llama, **{"block_size": BLOCK, **options})


def hits(llm: LLM) -> int:
    offload = engine_of(llm).offload
    assert offload is not None
    return offload.hits


def test_an_answer_is_a_part_of_the_next_prompt(llama: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    first = engine(llama, kv_offload=str(tmp_path))
    asked = PROMPTS[1]["prompt_token_ids"]
    answer = list(run(first, [PROMPTS[1]])[0][0])
    close(first)
    prompt = {"prompt_token_ids": asked + answer + [9, 8, 7]}
    expected = run(engine(llama), [prompt])
    again = engine(llama, kv_offload=str(tmp_path))
    assert run(again, [prompt]) == expected
    assert hits(again) == (len(asked) + len(answer) - 1) // BLOCK * BLOCK
    close(again)


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "bfloat16"},
        {"kv_cache_dtype": "int8"},
        {"kv_cache_dtype": "int4"},
        {"ops": "torch"},
        {"block_size": 8},
        {"quantization": "int8"},
    ],
)
def test_what_depends_on_other_options_is_not_found(
    llama: tuple[dict[str, Any], Path], tmp_path: Path, other: dict[str, Any]
) -> None:
    first = engine(llama, kv_offload=str(tmp_path))
    run(first, PROMPTS)
    close(first)
    expected = run(engine(llama, **other), PROMPTS)
    second = engine(llama, kv_offload=str(tmp_path), **other)
    assert run(second, PROMPTS) == expected
    assert hits(second) == 0
    close(second)


def test_another_model_in_the_same_place_is_another(llama: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    case, store = llama[0], str(tmp_path / "store")
    folder = write_model(case, tmp_path / "model")
    first = opened(case, folder, kv_offload=store, block_size=BLOCK)
    run(first, PROMPTS)
    close(first)
    [weights] = folder.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-4:] = bytes([data[-4] ^ 1, *data[-3:]])
    weights.write_bytes(data)
    second = opened(case, folder, kv_offload=store, block_size=BLOCK)
    run(second, PROMPTS)
    assert hits(second) == 0
    close(second)


def test_salts_and_adapters_are_kept_apart(
    llama: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_slots, "load_adapter", random_adapter)
    lora, ref = {"enable_lora": True}, request("a", tmp_path)
    first = engine(llama, kv_offload=str(tmp_path / "store"), **lora)
    plain, changed = run(first, PROMPTS), run(first, PROMPTS, lora_request=ref)
    assert plain != changed
    close(first)
    again = engine(llama, kv_offload=str(tmp_path / "store"), **lora)
    salted = [{**prompt, "cache_salt": "another tenant"} for prompt in PROMPTS]
    assert run(again, salted) == plain
    assert hits(again) == 0
    assert run(again, PROMPTS, lora_request=ref) == changed
    assert hits(again) > 0
    assert run(again, PROMPTS) == plain
    close(again)


def test_damaged_files_are_computed_anew(llama: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    first = engine(llama, kv_offload=str(tmp_path))
    expected = run(first, PROMPTS)
    close(first)
    for i, file in enumerate(files(tmp_path)):
        if i % 3 == 0:
            data = bytearray(file.read_bytes())
            data[-1 - i] ^= 1
            file.write_bytes(data)
    again = engine(llama, kv_offload=str(tmp_path))
    assert run(again, PROMPTS) == expected
    close(again)


def test_host_memory_brings_back_what_the_cache_has_lost(llama: tuple[dict[str, Any], Path]) -> None:
    llm = engine(llama, kv_offloading_size=0.25, kv_offloading_backend="native")
    expected = run(llm, PROMPTS)
    engine_of(llm).cache.pool.reset()
    assert run(llm, PROMPTS) == expected
    assert hits(llm) > 0
    close(llm)


def test_host_memory_is_swap_for_what_is_preempted(
    llama: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks run out while answers grow: what others wrote over comes back, in place of being computed once more."""
    params = SamplingParams(temperature=0, max_tokens=60, logprobs=2, ignore_eos=True)
    prompts = [{"prompt_token_ids": [7 + (i * j) % 50 for i in range(45)]} for j in range(1, 9)]

    def answers(llm: LLM, room: int) -> tuple[list[Any], int, int]:
        """Also how many tokens were computed, and how often a sequence was preempted."""
        own, counted = engine_of(llm), [0]
        own.cache.pool.take(own.cache.pool.num_free - room)
        real = own.executor.submit

        def submit(step: Any) -> None:
            counted[0] += sum(len(each.token_ids) for each in step.sequences)
            real(step)

        monkeypatch.setattr(own.executor, "submit", submit)
        found = [bits(o) for o in llm.generate(prompts, params, use_tqdm=False)]
        close(llm)
        return found, counted[0], own.scheduler.num_preemptions

    expected, fewest, none = answers(engine(llama), 400)
    again, anew, some = answers(engine(llama), 100)
    assert (again, none) == (expected, 0)
    assert some > 0
    swapped, computed, preempted = answers(engine(llama, kv_offloading_size=0.25), 100)
    assert swapped == expected
    assert preempted > 0
    # Of each that is preempted the block that was not full is, and what was written over again before its turn came.
    assert computed - fewest < 0.8 * (anew - fewest)


def test_too_few_blocks(llama: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    expected = run(engine(llama), PROMPTS * 3)
    for _ in range(2):
        llm = engine(llama, kv_offload=str(tmp_path))
        pool = engine_of(llm).cache.pool
        pool.take(pool.num_free - 30)
        assert run(llm, PROMPTS * 3) == expected
        close(llm)


def test_a_queue_without_room_makes_no_request_wait(
    llama: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_store, "QUEUE", 1)  # a block at a time
    expected = run(engine(llama), PROMPTS)
    llm = engine(llama, kv_offload=str(tmp_path))
    assert run(llm, PROMPTS) == expected
    close(llm)
    again = engine(llama, kv_offload=str(tmp_path))
    assert run(again, PROMPTS) == expected
    close(again)


@pytest.fixture
def threads() -> Iterator[None]:
    with stages_are_threads():
        yield


def test_stages_have_a_part_each(threads: None, tmp_path: Path) -> None:
    """A block counts as there only if all ranks have theirs."""
    case = read_case(ROWS["Gemma2ForCausalLM"])
    folder, prompts = write_model(case, tmp_path / "model"), [prompt_of(c) for c in case["cases"]]
    options = {"block_size": BLOCK, "pipeline_parallel_size": 2}
    expected = run(opened(case, folder, **options), prompts)
    store = tmp_path / "store"

    def once() -> int:
        llm = opened(case, folder, kv_offload=str(store), **options)
        assert run(llm, prompts) == expected
        wait_for_files(store)
        return hits(llm)

    assert once() == 0
    assert once() > 0
    for file in files(store)[::2]:
        file.unlink()
    once()


def wait_for_files(folder: Path) -> None:
    """Until no more files come."""
    count = -1
    while count != len(files(folder)):
        count = len(files(folder))
        time.sleep(0.3)
