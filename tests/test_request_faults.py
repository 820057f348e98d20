"""Whatever goes wrong with one request is that request's error: the others end, and with the same bits.

Faults are injected at each place where code runs for one request, in the engine and in its step.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, AsyncLLM, SamplingParams
from octavo.client.local_client import LocalRequests
from octavo.client.output_processor import Answer, OutputProcessor
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.engine_request import Completion
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError, OctavoError, RequestFailedError
from octavo.executor import sampler
from octavo.executor.grammar import Grammar, GrammarCompiler, GrammarSession
from octavo.executor.pooling import Pooling
from octavo.executor.runner import ModelRunner
from octavo.executor.sampling_state import SamplingState
from octavo.launch import launch_engine
from octavo.outputs import RequestOutput
from octavo.params import PoolingParams, RequestOutputKind, StructuredOutputsParams
from octavo.parts.pooler import AnyPooler
from octavo.text.detokenizer import TextStream
from octavo.text.inputs import InputChecker
from tests.server.conftest import write_tiny


class PanicException(BaseException):
    """As libraries in Rust raise it: no Exception."""


FAULTS: list[type[BaseException]] = [ValueError, MemoryError, RecursionError, KeyError, PanicException]
VICTIM = "victim"


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 24, "ignore_eos": True, "temperature": 0.8, "seed": 5, **values})


OTHERS = {
    "plain": params(logprobs=2, prompt_logprobs=1),
    "pair": params(n=2, stop=["never so"], frequency_penalty=0.5),
    "digits": params(structured_outputs=StructuredOutputsParams(regex="[0-9]{40}")),
    "biased": params(logit_bias={65: 4.0}, min_tokens=3, bad_words=["x"], repetition_penalty=1.2),
}


def victim_params() -> SamplingParams:
    """A request that meets every place where code runs for one request."""
    return params(
        logprobs=1,
        prompt_logprobs=1,
        stop=[VICTIM],
        bad_words=["x"],
        presence_penalty=0.5,
        structured_outputs=StructuredOutputsParams(regex="[a-z]{40}"),
        n=2,
    )


def of_victim(*things: Any) -> bool:
    """Whether the call is for the victim, by whatever it is given."""
    for thing in things:
        if getattr(thing, "request_id", None) == VICTIM or getattr(thing, "stop", None) == [VICTIM]:
            return True
        for inner in ("params", "state"):
            if of_victim(*filter(None, [getattr(thing, inner, None)])):
                return True
        if isinstance(thing, StructuredOutputsParams) and thing.regex == "[a-z]{40}":
            return True
        if getattr(getattr(thing, "_stops", None), "stops", None) == [VICTIM]:
            return True
        if getattr(thing, "of_victim", False):
            return True
    return False


@contextmanager
def fault(owner: Any, name: str, error: type[BaseException], after: int = 0) -> Iterator[list[int]]:
    """`owner.name` raises for the victim, from its call number `after` on. The list counts the victim's calls."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def wrapped(*args: Any, **keywords: Any) -> Any:
        if of_victim(*args, *keywords.values()):
            calls[0] += 1
            if calls[0] > after:
                raise error("injected")
        return real(*args, **keywords)

    setattr(owner, name, wrapped)
    try:
        yield calls
    finally:
        setattr(owner, name, real)


ADDING = [
    (InputChecker, "sampling"),
    (InputChecker, "bad_words"),
    (InputChecker, "length"),
    (TextStream, "__init__"),
]
STARTING = [
    (GrammarCompiler, "compile"),
    (SamplingState, "__post_init__"),
]
RUNNING = [
    (SamplingState, "draw_by"),
    (SamplingState, "penalties"),
    (SamplingState, "token_changes"),
    (TextStream, "add"),
    (TextStream, "visible"),
    (Completion, "append"),
    (Answer, "append"),
    (Answer, "output"),
    (OutputProcessor, "output"),
]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("faults") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return launch_engine(
        EngineArgs(str(tiny_model), dtype="float32", kv_cache_memory="16MiB", max_num_batched_tokens=64)
    )


Told = dict[str, Any]


def run(engine: Engine, wanted: dict[str, SamplingParams]) -> Told:
    """What every request ends with: its tokens, texts and log-probabilities, or an error."""
    ends: Told = {}
    requests = LocalRequests(engine)
    for name, params in wanted.items():
        try:
            requests.add(name, f"This is what {name} says. " * 5, params)
        except OctavoError as error:
            ends[name] = error
    for _ in range(500):
        if not requests.has_work:
            break
        for output in requests.step():
            if isinstance(output, Failed) or output.finished:
                assert output.request_id not in ends
                ends[output.request_id] = told(output)
    assert not engine.has_work
    assert not engine._owner
    assert not engine.scheduler.running
    assert engine.scheduler.num_waiting == 0
    assert engine.cache.pool.num_free == engine.cache.pool.num_blocks
    return ends


def told(output: Any) -> Any:
    if not isinstance(output, RequestOutput):
        return output
    prompt = [None if p is None else {t: e.logprob for t, e in p.items()} for p in output.prompt_logprobs or []]
    return [
        (
            c.text,
            list(c.token_ids),
            c.finish_reason,
            [{t: e.logprob for t, e in entries.items()} for entries in c.logprobs or []],
            prompt,
        )
        for c in output.outputs
    ]


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> Told:
    return run(engine, OTHERS)


def with_victim() -> dict[str, SamplingParams]:
    names = list(OTHERS)
    return {**{n: OTHERS[n] for n in names[:2]}, VICTIM: victim_params(), **{n: OTHERS[n] for n in names[2:]}}


def check_others(ends: Told, undisturbed: Told) -> None:
    assert {n: e for n, e in ends.items() if n != VICTIM} == undisturbed


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize(("owner", "name"), ADDING, ids=[n for _, n in ADDING])
def test_adding(engine: Engine, undisturbed: Told, owner: Any, name: str, error: type[BaseException]) -> None:
    with fault(owner, name, error) as calls:
        ends = run(engine, with_victim())
    assert calls == [1]
    assert isinstance(ends[VICTIM], RequestFailedError)
    assert "injected" in str(ends[VICTIM])
    check_others(ends, undisturbed)


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize(("owner", "name"), STARTING, ids=[n for _, n in STARTING])
def test_starting(engine: Engine, undisturbed: Told, owner: Any, name: str, error: type[BaseException]) -> None:
    """In the executor, which hears of a sequence with the next step."""
    with fault(owner, name, error) as calls:
        ends = run(engine, with_victim())
    assert calls == [2]  # one for each of its sequences
    assert isinstance(ends[VICTIM], Failed)
    assert "injected" in ends[VICTIM].error
    assert not ends[VICTIM].invalid
    check_others(ends, undisturbed)


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize(("owner", "name"), RUNNING, ids=[n for _, n in RUNNING])
def test_running(
    engine: Engine, undisturbed: Told, owner: Any, name: str, error: type[BaseException], after: int
) -> None:
    with fault(owner, name, error, after) as calls:
        ends = run(engine, with_victim())
    assert calls[0] > after
    end = ends[VICTIM]
    if isinstance(end, Failed):
        assert "injected" in end.error
    else:
        assert "error" in [c[2] for c in end]
    check_others(ends, undisturbed)


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("name", ["mask", "accept"])
def test_grammars(
    engine: Engine, undisturbed: Told, name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grammar that fails while it masks or advances."""
    compile_real = GrammarCompiler.compile

    def compile_marked(self: GrammarCompiler, wanted: StructuredOutputsParams, *more: Any) -> GrammarSession:
        session = compile_real(self, wanted, *more)
        for grammar in session.grammars:
            grammar.of_victim = of_victim(wanted)  # type: ignore[attr-defined]
        return session

    real_apply = sampler.apply_grammars

    def apply(logits: Any, rows: Any, grammars: Any, *more: Any) -> Any:
        if any(g.of_victim for g in grammars):
            raise error("injected")
        return real_apply(logits, rows, grammars, *more)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_marked)
    if name == "mask":
        monkeypatch.setattr(sampler, "apply_grammars", apply)
        ends = run(engine, with_victim())
    else:
        with fault(Grammar, "accept", error, 3):
            ends = run(engine, with_victim())
    assert all(c[2] == "error" for c in ends[VICTIM])
    check_others(ends, undisturbed)


def test_each_end_is_told_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the end of one of several answers that comes without a token, while the others go on."""
    real = ModelRunner.begin
    steps = 0

    def begin(self: ModelRunner, *step_of: Any) -> Any:
        nonlocal steps
        steps += 1
        rest, number = real(self, *step_of), steps

        def told() -> Any:
            results = rest()
            for place, step in ((1, 4), (0, 6), (0, 9)):
                if number == step:
                    results[place].token_ids, results[place].error = [], "injected"
            return results

        return told

    monkeypatch.setattr(ModelRunner, "begin", begin)
    wanted = params(n=4, max_tokens=12)
    wanted.output_kind = RequestOutputKind.DELTA
    requests = LocalRequests(engine)
    requests.add("several", "Hello", wanted)
    ends: dict[int, str] = {}
    while requests.has_work:
        for output in requests.step():
            assert isinstance(output, RequestOutput)
            for answer in output.outputs:
                assert answer.index not in ends
                if answer.finish_reason is not None:
                    ends[answer.index] = answer.finish_reason
    assert sorted(ends) == [0, 1, 2, 3]
    assert sorted(ends.values()) == ["error", "error", "error", "length"]


@pytest.mark.parametrize("error", FAULTS)
def test_logits_processors(engine: Engine, undisturbed: Told, error: type[BaseException]) -> None:
    def fails(output_ids: list[int], logits: Any) -> Any:
        if len(output_ids) == 4:
            raise error("injected")
        return logits

    ends = run(engine, {**OTHERS, VICTIM: params(logits_processors=[fails])})
    assert ends[VICTIM][0][2] == "error"
    assert len(ends[VICTIM][0][1]) == 4
    check_others(ends, undisturbed)


@pytest.mark.parametrize("error", FAULTS)
def test_log_probabilities_of_a_prompt(
    engine: Engine, undisturbed: Told, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a prompt whose whole vocabulary's log-probabilities do not fit into memory."""
    real = ModelRunner._prompt_logprobs

    def fails(self: ModelRunner, *of_prompt: Any) -> Any:
        if of_prompt[-1] == 3:  # how many are asked for
            raise error("injected")
        return real(self, *of_prompt)

    monkeypatch.setattr(ModelRunner, "_prompt_logprobs", fails)
    ends = run(engine, {VICTIM: params(prompt_logprobs=3), **OTHERS})
    assert ends[VICTIM][0][2] == "error"
    check_others(ends, undisturbed)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1 << 200},
        {"seed": -(1 << 200)},
        {"top_k": 1 << 200},
        {"top_k": 1 << 63},
        {"temperature": 10**400},
        {"temperature": float("inf")},
        {"repetition_penalty": 10**400},
        {"repetition_penalty": 1e300},
        {"min_tokens": 1 << 70, "max_tokens": None},
        {"max_tokens": 1 << 70},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {1: 10**300}},
        {"stop": ["\ud800"]},
        {"n": 2, "seed": 1 << 64},
    ],
    ids=lambda values: str(values)[:30],
)
def test_values_that_fit_no_machine_word(engine: Engine, undisturbed: Told, values: dict[str, Any]) -> None:
    """Each is refused, is the request's own error, or is taken as the value that it means."""
    wanted: dict[str, SamplingParams] = dict(OTHERS)
    try:
        wanted = {VICTIM: params(**values), **OTHERS}
    except InvalidRequestError:
        return
    engine.max_model_len, before = 200, engine.max_model_len
    try:
        ends = run(engine, wanted)
    finally:
        engine.max_model_len = before
    assert VICTIM in ends
    check_others(ends, undisturbed)


def test_an_interrupt_is_no_requests(engine: Engine) -> None:
    with fault(SamplingState, "draw_by", KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        run(engine, {VICTIM: victim_params()})
    engine.abort([VICTIM])


def test_a_prompt_checked_for_a_larger_engine_is_refused(engine: Engine) -> None:
    checked = engine.checker.prompt([1] * 30, params())
    engine.checker.max_model_len, before = 20, engine.checker.max_model_len
    try:
        with pytest.raises(InvalidRequestError, match="30 tokens"):
            engine.add_request("long", checked, params())
    finally:
        engine.checker.max_model_len = before
    assert not engine.has_work


def test_llm_goes_on(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), dtype="float32", kv_cache_memory="16MiB")
    before = llm.generate("hello", params(), use_tqdm=False)[0].outputs[0].text
    with fault(SamplingState, "__post_init__", MemoryError), pytest.raises(RequestFailedError, match="injected"):
        llm.generate(["one", "two"], victim_params(), use_tqdm=False)
    with fault(TextStream, "add", ValueError):
        outputs = llm.generate(["hello", "two"], [params(), victim_params()], use_tqdm=False)
    assert (outputs[0].outputs[0].text, outputs[0].outputs[0].finish_reason) == (before, "length")
    assert outputs[1].outputs[0].finish_reason == "error"
    assert "injected" in str(outputs[1].outputs[0].stop_reason)
    assert llm.generate("hello", params(), use_tqdm=False)[0].outputs[0].text == before


def test_async_llm_goes_on(tiny_model: Path) -> None:
    async def text(llm: AsyncLLM, wanted: SamplingParams, name: str) -> str:
        last = None
        async for output in llm.generate("hello", wanted, name):
            last = output
        assert last is not None
        return last.outputs[0].text

    async def main() -> None:
        llm = AsyncLLM(str(tiny_model), dtype="float32", kv_cache_memory="16MiB")
        try:
            before = await text(llm, params(), "first")
            for owner, name in [*ADDING[:1], *ADDING[3:], *STARTING, (OutputProcessor, "output")]:
                with fault(owner, name, PanicException):
                    other, victim = await asyncio.gather(
                        text(llm, params(), "other"), text(llm, victim_params(), VICTIM), return_exceptions=True
                    )
                assert other == before
                assert isinstance(victim, OctavoError)
                assert "injected" in str(victim)
        finally:
            llm.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("name", ["pooler", "add", "result"])
def test_pooling(tiny_model: Path, name: str, error: type[BaseException]) -> None:
    small: dict[str, Any] = {"dtype": "float32", "kv_cache_memory": "16MiB", "hf_overrides": {"is_matryoshka": True}}
    engine = launch_engine(EngineArgs(str(tiny_model), task="embedding", **small))

    def pool(requests: dict[str, PoolingParams]) -> Told:
        ends: Told = {}
        local = LocalRequests(engine)
        for request, wanted in requests.items():
            try:
                local.add(request, f"This is what {request} says.", wanted)
            except OctavoError as refused:
                ends[request] = refused
        while local.has_work:
            for output in local.step():
                found = output if isinstance(output, Failed) else output.outputs.data.tolist()  # type: ignore[union-attr]
                ends[output.request_id] = found
        return ends

    others = {"one": PoolingParams(), "two": PoolingParams(dimensions=4)}
    before = pool(others)
    real = Pooling.pooler

    def marked(self: Pooling, wanted: PoolingParams, skipped: int = 0) -> AnyPooler:
        if wanted.dimensions == 7 and name == "pooler":
            raise error("injected")
        pooler = real(self, wanted, skipped)
        if wanted.dimensions == 7:

            def fails(*args: Any) -> Any:
                raise error("injected")

            setattr(pooler, name, fails)
        return pooler

    Pooling.pooler = marked  # type: ignore[method-assign]
    try:
        ends = pool({"one": others["one"], VICTIM: PoolingParams(dimensions=7), "two": others["two"]})
    finally:
        Pooling.pooler = real  # type: ignore[method-assign]
    assert isinstance(ends[VICTIM], RequestFailedError | Failed)
    assert {n: ends[n] for n in others} == before
