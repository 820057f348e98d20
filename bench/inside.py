"""What the benchmarks reach for inside an engine, in one place, so that a type check sees when it moves."""

from octavo import LLM, SamplingParams
from octavo.engine.engine import Engine
from octavo.executor.local import LocalExecutor
from octavo.executor.runner import ModelRunner


def engine_of(llm: LLM) -> Engine:
    """The engine in this process."""
    assert isinstance(llm.engine, Engine)
    return llm.engine


def runner_of(llm: LLM) -> ModelRunner:
    """What computes the steps of an engine in this process."""
    executor = engine_of(llm).executor
    assert isinstance(executor, LocalExecutor)
    return executor.runner


def add(llm: LLM, request_id: str, token_ids: list[int], params: SamplingParams) -> None:
    """Queue a request for the engine's own steps, past all that makes text of its answer."""
    engine_of(llm).add_request(request_id, llm.engine.checker.prompt(token_ids, params), params)
