"""Several steps on their way at a time change no bit of any answer, whatever happens meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.client.local_client import LocalRequests
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.errors import EngineDeadError
from octavo.executor.local import LocalExecutor
from octavo.executor.step import StepResult
from octavo.launch import launch_engine
from octavo.params import PoolingParams, RequestOutputKind, StructuredOutputsParams
from tests.golden import CASES, prompt_of, read_case
from tests.preemption import preempt_all
from tests.server.conftest import write_tiny
from tests.test_golden import load

MOST_STEPS = 2000


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "ignore_eos": True, "temperature": 0.8, "seed": 5, **values})


REQUESTS: dict[str, tuple[str, SamplingParams]] = {
    "plain": ("a short one", params(logprobs=2, prompt_logprobs=1)),
    "long": ("a prompt of several chunks " * 9, params(logprobs=1, prompt_logprobs=0)),
    "same": ("a prompt of several chunks " * 9, params(frequency_penalty=0.5, n=2)),
    "digits": ("a number:", params(structured_outputs=StructuredOutputsParams(regex="[0-9]{40}"))),
    "biased": ("words", params(logit_bias={65: 4.0}, min_tokens=3, bad_words=["x"], repetition_penalty=1.2)),
    "many words": ("more", params(bad_words=[f"w{i}" for i in range(200)], logprobs=1)),
    "stops": ("until", params(stop=["e"], max_tokens=40)),
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("in-flight") / "tiny")


def engine_of(folder: Path, max_steps: int, **options: Any) -> Engine:
    """One whose executor takes so many steps before it computes the first of them."""
    options = {"dtype": "float32", "kv_cache_memory": "16MiB", "max_num_batched_tokens": 64, **options}
    engine = launch_engine(EngineArgs(str(folder), **options))
    allow(engine, max_steps)
    return engine


def allow(engine: Engine, max_steps: int) -> None:
    engine.executor.max_steps = engine.scheduler.max_steps = max_steps


def facts(output: Any) -> Any:
    of_prompt = output.prompt_logprobs and [
        step and {t: e.logprob for t, e in step.items()} for step in output.prompt_logprobs
    ]
    return of_prompt, [
        (
            a.token_ids,
            a.text,
            a.finish_reason,
            a.logprobs and [{t: e.logprob for t, e in s.items()} for s in a.logprobs],
        )
        for a in output.outputs
    ]


def run(engine: Engine, between: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Answers of all REQUESTS, which come one after the other."""
    requests, todo = LocalRequests(engine), dict(REQUESTS)
    done: dict[str, Any] = {}
    for step in range(MOST_STEPS):
        if todo and step % 2 == 0:
            name = next(iter(todo))
            prompt, values = todo.pop(name)
            values = values.clone()
            values.output_kind = RequestOutputKind.FINAL_ONLY
            requests.add(name, prompt, values)
        done |= {output.request_id: facts(output) for output in requests.step()}
        if not todo and not requests.has_work:
            break
        between(step)
    assert set(done) == set(REQUESTS)
    return done


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> dict[str, Any]:
    """The answers with one step at a time."""
    return run(engine_of(tiny_model, 1))


@pytest.mark.parametrize("max_steps", [2, 3, 5])
def test_answers_are_the_same(tiny_model: Path, alone: dict[str, Any], max_steps: int) -> None:
    engine = engine_of(tiny_model, max_steps)
    most = 0

    def look(step: int) -> None:
        nonlocal most
        most = max(most, len(engine.scheduler.in_flight))

    assert run(engine, look) == alone
    assert most == max_steps - 1  # one has just been collected
    assert not engine.scheduler.in_flight
    assert engine.cache.pool.num_free == engine.cache.pool.num_blocks


def test_preempted_on_the_way(tiny_model: Path, alone: dict[str, Any]) -> None:
    engine = engine_of(tiny_model, 3)
    assert run(engine, lambda step: preempt_all(engine) if step % 5 == 3 else None) == alone
    assert engine.scheduler.num_preemptions > 10


def test_too_few_blocks(tiny_model: Path, alone: dict[str, Any]) -> None:
    engine = engine_of(tiny_model, 3)
    engine.cache.pool.take(engine.cache.pool.num_free - 24)
    assert run(engine) == alone
    assert engine.scheduler.num_preemptions > 0


def test_aborted_on_the_way(tiny_model: Path, alone: dict[str, Any]) -> None:
    """What ends while a step with it is on its way leaves nothing, and the others go on."""
    engine = engine_of(tiny_model, 3)
    requests = LocalRequests(engine)
    for i in range(6):
        for name, (prompt, values) in REQUESTS.items():
            requests.add(f"{name}/{i}", prompt, values)
        for _ in range(i):
            requests.step()
        assert i < 3 or engine.scheduler.in_flight
        requests.abort([f"{name}/{i}" for name in REQUESTS])
        assert not engine.has_work
        assert not engine.scheduler.in_flight
    assert engine.cache.pool.num_free == engine.cache.pool.num_blocks
    assert run(engine) == alone


def test_decoding_is_divided_among_the_steps(tiny_model: Path) -> None:
    engine = engine_of(tiny_model, 2)
    requests = LocalRequests(engine)
    for i in range(7):
        requests.add(str(i), "a", params())
    requests.step()
    requests.step()
    assert [len(scheduled) for _, scheduled in engine.scheduler.in_flight] == [3]  # the four others are collected
    requests.step()
    assert [len(scheduled) for _, scheduled in engine.scheduler.in_flight] == [4]
    requests.abort([str(i) for i in range(7)])


def test_a_step_that_fails_among_others_ends_the_engine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny_model, 2)
    requests = LocalRequests(engine)
    for i in range(4):
        requests.add(str(i), "a", params())
    requests.step()

    def collect(executor: LocalExecutor) -> StepResult:
        raise MemoryError("no more")

    monkeypatch.setattr(LocalExecutor, "collect", collect)
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="no more"):
            requests.step()


def test_blocks_of_a_step_on_its_way_are_nobody_elses(tiny_model: Path) -> None:
    """It may turn out that it has computed values that are not finite, and then they are cleared."""
    engine = engine_of(tiny_model, 2)
    requests = LocalRequests(engine)
    prompt = "the same beginning " * 3
    requests.add("first", prompt, params(max_tokens=1))
    engine._submit(engine.scheduler.schedule())
    requests.add("second", prompt, params(max_tokens=1))
    done = [output for _ in range(4) for output in requests.step() if output.finished]
    assert [output.num_cached_tokens for output in done] == [0, 0]
    requests.add("third", prompt, params(max_tokens=1))
    [third] = [output for _ in range(3) for output in requests.step() if output.finished]
    assert third.num_cached_tokens > 0


OTHER_ROWS = [p for p in CASES if p.stem.startswith(("Bart", "Jamba", "Mamba", "Mllama", "Solar", "Gemma2", "Phi3For"))]


@pytest.mark.parametrize("path", OTHER_ROWS, ids=lambda p: p.stem)
def test_other_kinds_of_state(path: Path, tmp_path: Path) -> None:
    case = read_case(path)
    if "output_token_ids" not in case["cases"][0]:
        pytest.skip("it generates nothing")
    prompts = [prompt_of(c) for c in case["cases"]] * 3
    values = SamplingParams(temperature=0, max_tokens=6, logprobs=2, prompt_logprobs=1, ignore_eos=True)

    def answers(llm: LLM) -> list[Any]:
        return [facts(o) for o in llm.generate(prompts, values, use_tqdm=False)]

    llm = load(case, tmp_path, max_num_batched_tokens=16)
    once = answers(llm)
    allow(llm.engine, 3)
    llm.engine.cache.pool.reset()
    assert answers(llm) == once


def test_pooling(tmp_path: Path) -> None:
    case = read_case(next(p for p in CASES if "embedding" in read_case(p)["cases"][0]))
    prompts = [prompt_of(c) for c in case["cases"]] * 3
    llm = load(case, tmp_path, max_num_batched_tokens=16)
    once = [o.outputs.embedding for o in llm.embed(prompts, PoolingParams(), use_tqdm=False)]
    allow(llm.engine, 3)
    assert [o.outputs.embedding for o in llm.embed(prompts, PoolingParams(), use_tqdm=False)] == once
