"""Structured output: answers follow what was asked for, in a batch too, and what cannot be followed is refused."""

import gc
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams, StructuredOutputsParams
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError
from octavo.executor import grammar as grammar_module
from octavo.executor.grammar import Grammar, GrammarCompiler, GrammarSession, apply_grammars
from octavo.executor.sampler import sample
from octavo.executor.sampling_state import SamplingState
from octavo.ops import select_backend
from octavo.outputs import RequestOutput
from tests.preemption import preempt_all

BACKEND = select_backend("cpu", "torch")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
GRAMMAR = 'start: "SELECT " COLUMN " FROM t"\nCOLUMN: /[a-c]{1,3}/\n'


def params(**wanted: Any) -> SamplingParams:
    return SamplingParams(temperature=1.0, seed=3, max_tokens=60, structured_outputs=StructuredOutputsParams(**wanted))


def test_each_kind_is_followed_beside_the_others(smollm: LLM) -> None:
    plain = SamplingParams(temperature=0, max_tokens=8)
    alone = smollm.generate("The capital of France is", plain, use_tqdm=False)[0].outputs[0].token_ids
    wanted = [
        params(json=SCHEMA),
        params(json=json.dumps(SCHEMA)),
        params(regex=r"\d{3}-\d{4}"),
        params(choice=["red", "green and blue"]),
        params(grammar=GRAMMAR),
        plain,
    ]
    texts = ["A person as JSON:", "A person:", "Phone:", "A colour:", "A query:", "The capital of France is"]
    outputs = smollm.generate(texts, wanted, use_tqdm=False)
    for output in outputs[:2]:
        person = json.loads(output.outputs[0].text)
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 130
    assert re.fullmatch(r"\d{3}-\d{4}", outputs[2].outputs[0].text)
    assert outputs[3].outputs[0].text in ("red", "green and blue")
    assert re.fullmatch("SELECT [a-c]{1,3} FROM t", outputs[4].outputs[0].text)
    assert all(o.outputs[0].finish_reason == "stop" for o in outputs[:5])
    assert outputs[5].outputs[0].token_ids == alone


def test_several_answers_each_follow(smollm: LLM) -> None:
    asked = params(regex="(yes|no)")
    asked.n = 3
    answers = smollm.generate("Is water wet?", asked, use_tqdm=False)[0].outputs
    assert {a.text for a in answers} <= {"yes", "no"}


def test_any_object(smollm: LLM) -> None:
    asked = SamplingParams(
        temperature=0, max_tokens=40, structured_outputs=StructuredOutputsParams(json_object=True), stop=None
    )
    text = smollm.generate('Answer with {"a": 1}:', asked, use_tqdm=False)[0].outputs[0].text
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json": {"type": "objct"}}, "objct"),
        ({"json": "{not json"}, "structured_outputs"),
        ({"regex": "(["}, "regex"),
        ({"grammar": "start: %%%"}, "grammar"),
        ({"json": "[" * 100_000}, "schema"),
        ({"regex": "(?=a)b"}, "look-a"),
        ({"json": {"type": "string", "pattern": "^(?!a)b"}}, "look-a"),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed"),
        ({"json": "3"}, "schema"),
        ({"json": {"minimum": 10**30, "type": "integer"}}, "schema"),
        ({"json": {"if": {}, "then": {}}}, "Unimplemented"),
        ({"regex": "(" * 20_000 + ")" * 20_000}, "regex"),
        ({"regex": "\ud800"}, "not valid Unicode"),
        ({"choice": ["\udfff"]}, "not valid Unicode"),
        ({"json": {"const": "\ud800"}}, "not valid Unicode"),
    ],
)
def test_what_is_not_one_is_refused_before_it_runs(smollm: LLM, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        smollm.generate("x", params(**wanted), use_tqdm=False)
    assert not smollm.engine.has_work


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"regex": "a", "json": "{}"},
        {"regex": ""},
        {"regex": 3},
        {"grammar": ["a"]},
        {"choice": [""]},
        {"choice": []},
        {"choice": "ab"},
        {"choice": [1]},
        {"choice": 7},
        {"json": {"a": {1, 2}}},
        {"json": {"minimum": float("inf")}},
        {"json": 3},
        {"json_object": "yes"},
    ],
)
def test_contradictions(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        StructuredOutputsParams(**wanted).as_grammar()


def test_a_schema_that_contains_itself_is_refused() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    with pytest.raises(InvalidRequestError):
        StructuredOutputsParams(json=schema).as_grammar()


@pytest.mark.parametrize("count", [2001, 50_000])
def test_an_answer_is_one_of_many_choices(smollm: LLM, count: int) -> None:
    choices = [f"option {i * 7919 % 100003}" for i in range(count)]
    answer = smollm.generate("Choose:", params(choice=choices), use_tqdm=False)[0].outputs[0]
    assert (answer.finish_reason, answer.text in set(choices)) == ("stop", True)


@pytest.mark.parametrize(("bias", "expected"), [(100.0, "a"), (-100.0, "a b c")])
def test_a_choice_that_begins_another_can_be_either(smollm: LLM, bias: float, expected: str) -> None:
    answer = one(smollm, {"choice": ["a", "a b c", "a b c"]}, logit_bias={2: bias})
    assert (answer.text, answer.finish_reason) == (expected, "stop")


def test_no_keys_are_invented_and_no_new_lines_written(smollm: LLM) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
    asked = [params(json=schema) for _ in range(6)]
    for seed, each in enumerate(asked):
        each.seed = seed
    for output in smollm.generate(["A person with name and age as JSON:\n{\n\n\n"] * 6, asked, use_tqdm=False):
        assert output.outputs[0].finish_reason == "stop"
        assert json.loads(output.outputs[0].text).keys() == {"name"}
        assert "\n" not in output.outputs[0].text


# One request's own values against its grammar.


def one(smollm: LLM, wanted: dict[str, Any], **values: Any) -> Any:
    asked = SamplingParams(
        **{"temperature": 0, "max_tokens": 30, **values}, structured_outputs=StructuredOutputsParams(**wanted)
    )
    return smollm.generate("Say yes or no:", asked, use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize(
    "values",
    [
        {"ignore_eos": True},
        {"min_tokens": 20},
        {"min_tokens": 20, "ignore_eos": True},
        {"bad_words": ["maybe", "<|im_end|>"]},
        {"logit_bias": {2: -100.0}},
        {"stop_token_ids": [2], "min_tokens": 20},
        {"repetition_penalty": 1.5, "presence_penalty": 2.0},
    ],
)
def test_the_end_of_the_grammar_is_the_end(smollm: LLM, values: dict[str, Any]) -> None:
    answer = one(smollm, {"choice": ["yes", "no"]}, **values)
    assert answer.text in ("yes", "no")
    assert answer.finish_reason == "stop"


def test_allowed_tokens_and_a_grammar(smollm: LLM) -> None:
    tokenizer = smollm.engine.tokenizer
    yes, no = tokenizer.encode("yes"), tokenizer.encode("no")
    answer = one(smollm, {"choice": ["yes", "no"]}, allowed_token_ids=no)
    assert (answer.text, answer.finish_reason) == ("no", "stop")
    answer = one(smollm, {"choice": ["yes"]}, allowed_token_ids=tokenizer.encode("x"))
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], "error")
    assert "allowed_token_ids" in answer.stop_reason
    answer = one(smollm, {"choice": ["yes"]}, bad_words=["yes", "y", "ye", "es"], allowed_token_ids=yes)
    assert answer.finish_reason == "error"


def test_min_tokens_holds_while_the_grammar_can_go_on(smollm: LLM) -> None:
    answer = one(smollm, {"regex": "(ab)*"}, min_tokens=10)
    assert len(answer.token_ids) >= 10
    assert re.fullmatch("(ab)*", answer.text) or answer.finish_reason == "length"


def test_a_stop_text_ends_an_answer_inside_its_grammar(smollm: LLM) -> None:
    answer = one(smollm, {"regex": "one two three"}, stop=["two"])
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("one ", "stop", "two")


def test_cut_answers_say_so(smollm: LLM) -> None:
    answer = one(smollm, {"regex": "a{200}"}, max_tokens=3)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 3)


class FixedGrammar(Grammar):
    """A grammar with a given mask."""

    def __init__(self, allowed: list[int], size: int, end_ids: list[int]) -> None:
        self.end_ids, self.ended, self.error = end_ids, False, None
        bits = sum(1 << i for i in allowed)
        self.mask = bits.to_bytes(size, "little")


def sampled(allowed: list[int], size: int, vocab: int = 20, end_ids: tuple[int, ...] = (2,), **values: Any) -> Any:
    states = [
        SamplingState(SamplingParams(temperature=0), 0, [], frozenset()),
        SamplingState(
            SamplingParams(**values),
            1,
            [],
            frozenset({2}),
            FixedGrammar(allowed, size, list(end_ids)),
            values.get("x", []),
        ),
    ]
    logits = torch.arange(vocab).float().repeat(2, 1)
    plain, other = sample(logits, states, select_backend("cpu", "auto"))
    assert plain.token_id == vocab - 1
    return other


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nothing_left_is_an_error(temperature: float) -> None:
    for choice in [
        sampled([], 3, temperature=temperature),
        sampled([5], 3, temperature=temperature, allowed_token_ids=[4]),
        sampled([21, 22], 3, temperature=temperature),  # the tokenizer's own, beyond the model's vocabulary
        sampled([5], 3, temperature=temperature, logits_processors=[lambda out, row: row - torch.inf]),
    ]:
        assert choice.token_id is None
        assert choice.error is not None
    assert sampled([2, 5], 3, temperature=temperature, allowed_token_ids=[4]).token_id == 2


def test_masks_of_other_sizes_than_the_vocabulary() -> None:
    assert sampled([3, 21, 23], 3, temperature=0).token_id == 3
    assert sampled([3, 5], 1, temperature=0).token_id == 5
    logits = torch.zeros(1, 20)
    assert apply_grammars(logits, [], [], BACKEND) == {}


class Cut:
    """SmolLM2's tokenizer with a model of another vocabulary size."""

    def __init__(self, smollm: LLM, vocab_size: int) -> None:
        self.compiler = GrammarCompiler(smollm.engine.tokenizer, vocab_size, frozenset({2, 10**6}))

    def first_mask(self, **wanted: Any) -> bytes:
        session = self.compiler.compile(StructuredOutputsParams(**wanted), 1)
        for _ in range(1000):
            self.compiler.wait([session], 0.1)
            if not session.waits:
                break
        assert session.refused is None
        mask = session.grammars[0].mask
        assert mask is not None
        session.close()
        return mask


@pytest.mark.parametrize("vocab_size", [1000, 60_000])
def test_a_tokenizer_of_another_size_than_the_vocabulary(smollm: LLM, vocab_size: int) -> None:
    mask = Cut(smollm, vocab_size).first_mask(regex="(.|\n)*")
    logits = torch.zeros(1, vocab_size)
    grammar = FixedGrammar([], 1, [2])
    grammar.mask = mask
    assert apply_grammars(logits, [0], [grammar], BACKEND) == {}
    allowed = torch.isfinite(logits[0]).nonzero().flatten()
    assert 500 < len(allowed) <= 49_152
    assert int(allowed.max()) < min(vocab_size, 49_152)


# Grammars that would take minutes or gigabytes.


def ambiguous(depth: int) -> str:
    rules = "".join(f"a{i}: a{i + 1} a{i + 1} | a{i + 1}\n" for i in range(depth))
    return f"start: a0\n{rules}a{depth}: /a?/\n"


def exponential(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"d{depth}": {"type": "string"}}
    for i in range(depth):
        next_one = {"$ref": f"#/$defs/d{i + 1}"}
        branches = [{"type": "integer", side: i} for side in ("minimum", "maximum")]
        definitions[f"d{i}"] = {"allOf": [{"anyOf": [next_one, branch]} for branch in branches]}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


HOSTILE: dict[str, dict[str, Any]] = {
    "multiples": {"json": {"type": "integer", "multipleOf": 999983}},
    "multiples of fractions": {"json": {"type": "number", "multipleOf": 0.000000997}},
    "exponential references": {"json": exponential(16)},
    "a long string": {"json": {"type": "string", "minLength": 10**9}},
    "many items": {"json": {"type": "array", "items": {"type": "array", "minItems": 10**6}, "minItems": 10**6}},
    "many properties": {"json": {"properties": {f"p{i}": {} for i in range(20_000)}}},
    "patterns together": {"json": {"allOf": [{"type": "string", "pattern": f".*{c}.{{15}}.*"} for c in "abcdefghij"]}},
    "a large enum": {"json": {"enum": [f"value {i}" for i in range(100_000)]}},
    "a million choices": {"choice": [f"{i}" for i in range(1_000_000)]},
    "repetitions": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "many repetitions": {"regex": "a{1,1000000}b"},
    "classes": {"regex": r"(\p{L}|\p{N}){1,500}(\w|\d)*[\p{Han}]{2,400}"},
    "places from the end": {"regex": "(.*a.{1000}){20}"},
    "an ambiguous grammar": {"grammar": ambiguous(25)},
    "intersections": {"grammar": "start: X\nX: /(.*a.{18})/ & /(.*b.{19})/ & ~/(.*c.{17})/\n"},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that hostile grammars reach soon; each is far beyond what a usual one needs."""
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 0.5)
    monkeypatch.setattr(grammar_module, "MASK_SECONDS", 0.3)
    monkeypatch.setattr(grammar_module, "TOTAL_SECONDS", 0.5)


def is_over(output: Any) -> bool:
    return isinstance(output, Failed) or bool(output.finished)


def drain(smollm: LLM, on_output: Callable[[Any], None], seconds: float = 300) -> None:
    """Run the engine until all is done, with an end."""
    end = time.monotonic() + seconds
    while smollm.engine.has_work:
        for output in smollm.requests.step():
            on_output(output)
        assert time.monotonic() < end


@pytest.fixture
def idle(smollm: LLM) -> Iterator[None]:
    """Nothing is left behind for the next test."""
    yield
    smollm.requests.abort(list(smollm.engine._requests))


@pytest.mark.usefixtures("impatient", "idle")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_ends_by_itself_and_beside_it_goes_a_stream(smollm: LLM, name: str) -> None:
    plain = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    friend = params(json=SCHEMA)
    alone = smollm.generate(["The capital of France is", "A person:"], [plain, friend], use_tqdm=False)
    hostile = SamplingParams(
        temperature=1, seed=1, max_tokens=25, structured_outputs=StructuredOutputsParams(**HOSTILE[name])
    )
    smollm.requests.add("plain", "The capital of France is", plain)
    smollm.requests.add("hostile", "Hello", hostile)
    smollm.requests.add("friend", "A person:", friend)
    ended: dict[str, Any] = {}

    def take(output: Any) -> None:
        if is_over(output):
            ended[output.request_id] = output

    drain(smollm, take)
    assert ended["plain"].outputs[0].token_ids == alone[0].outputs[0].token_ids
    assert ended["friend"].outputs[0].token_ids == alone[1].outputs[0].token_ids
    if isinstance(ended["hostile"], Failed):
        assert ended["hostile"].invalid
        assert "structured_outputs" in ended["hostile"].error
    else:
        answer = ended["hostile"].outputs[0]
        assert answer.finish_reason in ("stop", "length") or "structured_outputs" in answer.stop_reason


@pytest.mark.usefixtures("idle")
def test_a_mask_over_its_limit_ends_its_request_only(smollm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = smollm.generate("A person:", params(json=SCHEMA), use_tqdm=False)[0].outputs[0]
    monkeypatch.setattr(grammar_module, "MASK_SECONDS", 0.001)
    monkeypatch.setattr(grammar_module, "TOTAL_SECONDS", 0.001)
    hostile = params(grammar=ambiguous(25))
    hostile.min_tokens = 55
    smollm.requests.add("late", "Hello", hostile)
    smollm.requests.step()  # in which its grammar is begun
    monkeypatch.undo()
    smollm.requests.add("friend", "A person:", params(json=SCHEMA))
    ended: dict[str, RequestOutput] = {}
    drain(smollm, lambda o: ended.update({o.request_id: o}) if is_over(o) else None)
    late = ended["late"].outputs[0]
    assert late.finish_reason == "error"
    assert "takes more than" in str(late.stop_reason)
    assert late.is_invalid
    assert ended["friend"].outputs[0].token_ids == alone.token_ids


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("running", [False, True])
def test_on_a_busy_machine_nobody_waits_without_end(
    smollm: LLM, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    """Processor time hardly passes for a process that comes last."""
    monkeypatch.setattr(grammar_module, "COMPILE_SECONDS", 1000)
    monkeypatch.setattr(grammar_module, "LONGEST", 1000 if running else 0.3)
    hostile = params(regex="[a-z]{900}") if running else params(json={"type": "integer", "multipleOf": 999983})
    smollm.requests.add("late", "Hello", hostile)
    [completion] = smollm.engine._requests["late"].completions  # type: ignore[union-attr]
    while running and not completion.token_ids:
        smollm.requests.step()
    if running:  # it is never given its next mask
        monkeypatch.setattr(grammar_module, "LONGEST", 0.3)
        monkeypatch.setattr(GrammarSession, "receive", lambda self: None)
    ended: list[Any] = []
    drain(smollm, ended.append)
    if running:
        assert ended[-1].outputs[0].is_invalid
        assert "takes more than" in str(ended[-1].outputs[0].stop_reason)
    else:
        assert ended[-1].invalid
        assert "takes more than" in ended[-1].error


@pytest.mark.usefixtures("idle")
def test_what_is_wrong_while_it_runs_is_an_error_and_no_end(smollm: LLM) -> None:
    answer = one(smollm, {"regex": "((a{1,1000}){1,1000}){1,1000}"}, max_tokens=400)
    assert answer.finish_reason in ("error", "length")
    if answer.finish_reason == "error":
        assert "structured_outputs: lexer error" in answer.stop_reason


@pytest.mark.usefixtures("idle")
def test_others_go_on_while_a_grammar_is_prepared(smollm: LLM) -> None:
    """A stream that begins after a grammar that takes seconds is done before it."""
    smollm.requests.add("slow", "Hello", params(json={"type": "integer", "multipleOf": 999983}))
    smollm.requests.add("plain", "The capital of France is", SamplingParams(temperature=0, max_tokens=4))
    order: list[str] = []
    drain(smollm, lambda o: order.append(o.request_id) if is_over(o) else None)
    assert order == ["plain", "slow"]


@pytest.mark.usefixtures("idle")
def test_an_answer_does_not_depend_on_when_its_masks_come(smollm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks that are kept back at random, and preemptions meanwhile, change no token."""
    asked = [params(json=SCHEMA), params(regex=r"\d{3}-\d{4}"), SamplingParams(temperature=0, max_tokens=30)]
    asked[0].n = 2
    texts = ["A person:", "Phone:", "Once"]
    alone = [smollm.generate(t, a, use_tqdm=False)[0] for t, a in zip(texts, asked, strict=True)]
    wait, calls = GrammarCompiler.wait, iter(range(10**9))

    def late(sessions: Any, seconds: float, until_first: bool = False) -> None:
        if next(calls) % 7 == 0:
            wait(sessions, 0.01, until_first)

    monkeypatch.setattr(GrammarCompiler, "wait", staticmethod(late))
    for i, (text, each) in enumerate(zip(texts, asked, strict=True)):
        smollm.requests.add(str(i), text, each)
    ended: dict[str, Any] = {}
    steps = iter(range(10**9))

    def take(output: Any) -> None:
        if next(steps) % 11 == 5:
            preempt_all(smollm.engine)
        if is_over(output):
            ended[output.request_id] = output

    drain(smollm, take)
    for i, expected in enumerate(alone):
        got = [c.token_ids for c in sorted(ended[str(i)].outputs, key=lambda c: c.index)]
        assert got == [c.token_ids for c in expected.outputs]


def process_ids(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    rest = stat.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(rest[1]) == parent and rest[0] != "Z":
                found.append(int(name))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_processes_end_with_their_requests_and_with_the_engine(smollm: LLM) -> None:
    before = set(process_ids(os.getpid()))
    compiler = GrammarCompiler(smollm.engine.tokenizer, 49_152, frozenset({2}))
    wanted = StructuredOutputsParams(json={"type": "integer", "multipleOf": 999983})
    session = compiler.compile(wanted, 1)
    [helper] = set(process_ids(os.getpid())) - before
    wait_until(lambda: len(process_ids(helper)) == 1)
    session.close()  # as an aborted request's is
    wait_until(lambda: not process_ids(helper))
    session = compiler.compile(wanted, 1)
    wait_until(lambda: len(process_ids(helper)) == 1)
    [child] = process_ids(helper)
    del compiler, session
    gc.collect()
    wait_until(lambda: helper not in process_ids(os.getpid()))
    wait_until(lambda: child not in process_ids(1) + process_ids(helper))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_helper_that_was_killed_is_started_again(smollm: LLM) -> None:
    compiler = GrammarCompiler(smollm.engine.tokenizer, 49_152, frozenset({2}))
    before = set(process_ids(os.getpid()))
    sessions = [compiler.compile(StructuredOutputsParams(regex="a"), 1)]
    [helper] = set(process_ids(os.getpid())) - before
    os.kill(helper, 9)
    wait_until(lambda: helper not in process_ids(os.getpid()))
    for _ in range(3):
        sessions.append(compiler.compile(StructuredOutputsParams(regex="a"), 1))
        wait_until(lambda: compiler.wait(sessions[-1:], 0.1) or not sessions[-1].waits)  # type: ignore[func-returns-value]
    assert sessions[-1].refused is None
    assert sessions[-1].grammars[0].mask is not None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_grammars_that_a_killed_helper_had_not_begun_are_begun_by_another(smollm: LLM) -> None:
    compiler = GrammarCompiler(smollm.engine.tokenizer, 49_152, frozenset({2}))
    before = set(process_ids(os.getpid()))
    sessions = [compiler.compile(StructuredOutputsParams(regex="a"), 1)]
    [helper] = set(process_ids(os.getpid())) - before
    wait_until(lambda: compiler.wait(sessions, 0.1) or not sessions[0].waits)  # type: ignore[func-returns-value]
    os.kill(helper, signal.SIGSTOP)
    sessions += [compiler.compile(StructuredOutputsParams(regex=f"b{i}"), 2) for i in range(5)]
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: compiler.wait(sessions, 0.1) or not any(s.waits for s in sessions))  # type: ignore[func-returns-value]
    assert all(g.mask is not None for s in sessions for g in s.grammars)
    with pytest.raises(ChildProcessError):  # it is not left as a zombie
        os.waitpid(helper, os.WNOHANG)
