"""How many tokens steps get under --max-step-ms: by what steps took, on machines of any speed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.client.local_client import LocalRequests
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.scheduler import ScheduledSequence
from octavo.engine.step_budget import AIM, FIRST, StepBudget
from octavo.errors import ConfigError
from octavo.launch import launch_engine
from octavo.params import SamplingParams
from tests.server.conftest import write_tiny

seconds = st.floats(0, 1e6) | st.sampled_from([0.0, 1e-300, float("inf"), float("nan")])


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 4096), st.lists(st.tuples(st.integers(0, 5000), seconds)))
def test_the_budget_is_always_within_its_bounds(limit: float, max_tokens: int, steps: list[tuple[int, float]]) -> None:
    budget = StepBudget(limit, max_tokens)
    for tokens, took in steps:
        before = budget.tokens(1)
        budget.took(tokens, took)
        assert budget.tokens(0) == max_tokens
        for num_decoding in (1, 7, max_tokens):
            assert min(max_tokens, num_decoding + FIRST) <= budget.tokens(num_decoding) <= max_tokens
        if took > limit:
            assert budget.tokens(1) <= before
        assert budget.tokens(1) <= max(2 * before + 1, FIRST + 1)  # which are rounded down


@settings(max_examples=300, deadline=None)
@given(
    base=st.floats(0, 0.5),
    speeds=st.lists(st.floats(20, 3000), min_size=1, max_size=3),
    noise=st.lists(st.floats(-0.05, 0.05), min_size=1, max_size=9),
)
def test_steps_come_to_fit_the_limit_and_fill_it(base: float, speeds: list[float], noise: list[float]) -> None:
    """A step takes a share `base` of the limit by itself, and the rest for as many tokens as the speed says."""
    budget, limit, num_decoding = StepBudget(0.05, 1 << 20), 0.05, 1
    for fitting in speeds:  # of which the machine changes
        for i in range(60):
            tokens = budget.tokens(num_decoding)
            took = limit * (base + (1 - base) * tokens / fitting) * (1 + noise[i % len(noise)])
            budget.took(tokens, took)
            settled = i >= 40
            if settled and tokens > num_decoding + FIRST:
                assert took <= limit * 1.06
            if settled and fitting > 2 * FIRST:
                assert tokens >= 0.6 * (AIM - 0.1 - base) / (1 - base) * fitting


@settings(max_examples=100, deadline=None)
@given(base=st.floats(0, 0.8), fitting=st.floats(FIRST + 2, 5000))
def test_no_step_is_above_the_limit_while_the_budget_grows(base: float, fitting: float) -> None:
    budget = StepBudget(1.0, 4096)
    for _ in range(50):
        tokens = budget.tokens(1)
        took = base + (1 - base) * tokens / fitting
        assert took <= 1 + 1e-9
        budget.took(tokens, took)


class FakeMachine:
    """Steps of an engine take a time that their tokens decide, by a clock that only they advance."""

    def __init__(self, engine: Engine, per_token: float) -> None:
        self.now, self.per_token = 0.0, per_token
        self.steps: list[tuple[int, int, float]] = []
        """Tokens, how many of them were answers', and seconds of each."""
        clock = engine.step_clock
        clock.clock = lambda: self.now
        told = clock.collected

        def collected(scheduled: list[ScheduledSequence], apart: float, drafting: float) -> None:
            tokens = sum(entry.num_tokens for entry in scheduled)
            decoding = sum(entry.num_tokens == 1 and not entry.is_new for entry in scheduled)
            took = 0.004 + self.per_token * tokens
            self.now += took
            self.steps.append((tokens, decoding, took))
            told(scheduled, apart, drafting)

        clock.collected = collected  # type: ignore[method-assign,assignment]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("budget") / "tiny")


def answers(folder: Path, max_step_ms: float | None) -> tuple[dict[str, list[int]], FakeMachine]:
    """Of a long prompt that comes while two answers run, with their tokens."""
    engine = launch_engine(EngineArgs(str(folder), kv_cache_memory="32MiB", dtype="float32", max_step_ms=max_step_ms))
    machine, requests = FakeMachine(engine, per_token=0.0005), LocalRequests(engine)
    params = SamplingParams(temperature=0.7, seed=5, max_tokens=120, ignore_eos=True)
    for name in ("one", "other"):
        requests.add(name, f"a short prompt of {name}", params)
    done = dict[str, list[int]]()
    for step in range(10_000):
        if step == 5:
            requests.add("long", "many words " * 150, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
        for output in requests.step():
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)
        if len(done) == 3:
            return done, machine
    raise AssertionError("it does not end")


def test_a_long_prompt_leaves_steps_of_running_answers_short(tiny_model: Path) -> None:
    free, unlimited = answers(tiny_model, None)
    short, limited = answers(tiny_model, 30.0)
    assert short == free  # chunks change no bits
    assert max(took for _, decoding, took in unlimited.steps if decoding) > 0.2
    together = [(tokens, took) for tokens, decoding, took in limited.steps if decoding and tokens > decoding]
    assert max(took for _, took in together) <= 0.030
    assert max(tokens for tokens, _ in together) > 0.75 * (0.030 - 0.004) / 0.0005  # and the time is used


def test_wrong_limits_are_refused() -> None:
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="max_step_ms"):
            EngineArgs("model", max_step_ms=wrong)
