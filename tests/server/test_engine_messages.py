"""Between the two processes: nothing that a message holds ends either's loop, and a new engine is taken as new."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo.client import engine_server
from octavo.client.async_requests import AsyncRequests
from octavo.client.channel import Channel
from octavo.client.engine_server import EngineServer
from octavo.client.output_processor import processor_of
from octavo.client.process_client import ProcessClient
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.messages import Abort, Add, Failed, Stats, Step, Stop, Tokens, decode_report, encode
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.launch import launch_engine
from octavo.params import SamplingParams
from octavo.server.metrics import Metrics
from octavo.text.checked_prompt import CheckedPrompt
from tests.server.running import server

COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "engine_restarts_total")


def test_an_engine_killed_after_it_has_served(tiny_model: Path) -> None:
    """The new process counts from zero, and its answers come as the old one's did."""
    body = {"prompt": "four", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
    with server(str(tiny_model), "--kv-cache-memory", "32MiB") as running:
        texts, seen, served = [], dict.fromkeys(COUNTERS, 0.0), 0
        for killed in range(4):  # three times in ten minutes it is started again
            for _ in range(4 - killed):  # so that the new process' numbers stay below the old one's
                answer = running.post("/v1/completions", body)
                assert answer.status_code == 200
                texts.append(answer.json()["choices"][0]["text"])
                served += 1
            now = {name: running.metric(name) for name in COUNTERS}
            assert all(now[name] >= seen[name] for name in COUNTERS)
            assert (now["prompt_tokens_total"], now["generation_tokens_total"]) == (4 * served, 5 * served)
            assert now["engine_restarts_total"] == killed
            seen = now
            if killed < 3:
                os.kill(running.engine_pid(), signal.SIGKILL)
                running.until(lambda: running.get("/health").status_code == 503)
                assert running.metric("num_requests_running") == 0
                running.until(lambda: running.get("/health").status_code == 200)
        assert len(set(texts)) == 1


def test_an_engine_killed_under_load(tiny_model: Path) -> None:
    """All who wait are told, and who comes afterwards is served."""
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "n": 8}
    with server(str(tiny_model), "--kv-cache-memory", "64MiB") as running, ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            asked = [pool.submit(running.post, "/v1/completions", body) for _ in range(6)]
            running.until(lambda: running.metric("num_requests_running") > 8)
            os.kill(running.engine_pid(), signal.SIGKILL)
            assert {a.result().status_code for a in asked} == {503}
            running.until(lambda: running.get("/health").status_code == 200)
            assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 3}).status_code == 200


@pytest.mark.parametrize(("is_asked", "tokens"), [(True, 9 + 4 + 7), (False, 9 + 2 + 7)], ids=["often", "at the end"])
def test_counters_never_fall(is_asked: bool, tokens: int) -> None:
    """Whatever a report says: of a new process, or of one that counts backwards. No process' last report is lost."""
    metrics = Metrics("m")
    reports = [(Stats(prompt_tokens=9, steps=5), 0), (Stats(), 1), (Stats(prompt_tokens=4, steps=9), 1)]
    for stats, restarts in [*reports, (Stats(prompt_tokens=2), 1), (Stats(prompt_tokens=7, steps=1), 3)]:
        metrics.take(stats, 10, restarts)
        if is_asked:
            metrics.text()
    metrics.text()
    values = {m.name: m.samples[0].value for m in metrics.registry.collect() if m.type == "counter" and m.samples}
    assert values["octavo:prompt_tokens"] == tokens
    assert values["octavo:engine_restarts"] == 3


# What an engine might say, by mistake or because its process is damaged.
SAID: list[Any] = [
    b"",
    b"\xc1 nothing",
    b"\xff" * 100,
    msgspec.msgpack.encode(["Unknown", 1]),
    msgspec.msgpack.encode(["Step", "no list", None]),
    msgspec.msgpack.encode(["Step", [["Tokens", 5, 0, []]], ["Stats"]]),
    msgspec.msgpack.encode({"type": "Step"}),
    msgspec.msgpack.encode(["LoadFailed", "late"]),
    encode(Step([Tokens("nobody", 0, [1, 2])], Stats())),
    encode(Step([Failed("nobody", "no", invalid=False)], Stats(prompt_tokens=-5, steps=-1))),
    encode(Step([], Stats(used_blocks=1 << 60, running=-3))),
]

ENGINE = """
import sys
from octavo.client.channel import Channel
from octavo.engine.messages import *
from octavo.loading.model_info import ModelInfo
channel = Channel.inherited(sys.argv[1])
ready = Ready(ModelInfo(task="generate", vocab_size=10, max_model_len=100), 10)
channel.send(encode(ready))
for message in {said!r}:
    channel.send(message)
channel.send(encode(ready))
while True:
    channel.poll(1000)
    message = channel.receive()
    if message is None:
        continue
    command = decode_command(message)
    if isinstance(command, Stop):
        break
    if isinstance(command, Add):
        channel.send(encode(Step([Tokens(command.request_id, 0, [7], finish_reason="length")], Stats(steps=1))))
"""


@pytest.fixture
def said_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines' processes that say what SAID has before anything else."""
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", ENGINE.format(said=SAID), command[-1]], **options)

    monkeypatch.setattr("octavo.client.process_client.subprocess.Popen", start)


class Requests(AsyncRequests):
    """Requests to a process."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.client = ProcessClient(EngineArgs("none"), self.on_outputs, self.fail_all, **options)

    async def answer(self, name: str = "one", **values: Any) -> list[list[int]]:
        processor = processor_of(name, CheckedPrompt("x", [1]), SamplingParams(max_tokens=1, **values), None)
        return [output.outputs[0].token_ids async for output in self.generate(self.client, processor)]


@pytest.mark.usefixtures("said_engine")
def test_whatever_the_engine_says_its_reader_goes_on() -> None:
    def fails(stats: Stats, restarts: int) -> None:
        raise ValueError("counters cannot fall")

    async def main() -> None:
        requests = Requests(on_stats=fails)
        client = requests.client
        try:
            await client.start()
            for i in range(3):
                assert await asyncio.wait_for(requests.answer(str(i)), 20) == [[7]]
        finally:
            await client.stop()

    asyncio.run(main())


@pytest.mark.usefixtures("said_engine")
def test_the_readers_end_is_the_servers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it ends all the same, nobody waits for ever: not those who wait, not those who come, not the server."""

    def breaks(self: ProcessClient, report: Step) -> None:
        if report.outputs and report.outputs[0].request_id.endswith(":last"):
            raise MemoryError("nobody foresaw this")

    async def main() -> None:
        ended = asyncio.Event()
        requests = Requests()
        client = requests.client
        client.on_failure = ended.set
        try:
            await client.start()
            monkeypatch.setattr(ProcessClient, "_take", breaks)
            with pytest.raises(EngineDeadError):
                await asyncio.wait_for(requests.answer("last"), 20)
            await asyncio.wait_for(ended.wait(), 20)
            assert isinstance(client.failure, MemoryError)
            with pytest.raises(EngineDeadError):
                await requests.answer("later")
        finally:
            await client.stop()

    asyncio.run(main())


@pytest.mark.usefixtures("said_engine")
def test_a_value_that_no_message_holds_is_refused() -> None:
    async def main() -> None:
        requests = Requests()
        client = requests.client
        try:
            await client.start()
            for values in (
                {"seed": 1 << 70},
                {"top_k": 1 << 65},
                {"bad_words": ["\ud800"]},
                {"allowed_token_ids": [1 << 70]},
            ):
                with pytest.raises(InvalidRequestError, match="cannot be sent"):
                    await requests.answer(**values)
            assert len(requests) == 0
            assert await asyncio.wait_for(requests.answer(), 20) == [[7]]
        finally:
            await client.stop()

    asyncio.run(main())


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return launch_engine(EngineArgs(str(tiny_model), dtype="float32", kv_cache_memory="16MiB"))


class Talk:
    """The other end of an EngineServer's channel, as the HTTP process has it."""

    def __init__(self, engine: Engine) -> None:
        self.channel, inner = Channel.pair()
        self.server = EngineServer(engine, inner)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}

    def say(self, *commands: Any) -> None:
        for command in commands:
            self.channel.send(command if isinstance(command, bytes) else encode(command))

    def hear(self, count: int) -> None:
        """Until so many requests have ended."""
        while len(self.ends) < count:
            if (message := self.channel.receive()) is None:
                assert self.channel.poll(20_000), f"the engine says nothing more: {self.ends}"
                continue
            report = decode_report(message)
            assert isinstance(report, Step)
            for output in report.outputs:
                if isinstance(output, Failed):
                    self.ends[output.request_id] = output.error
                elif isinstance(output, Tokens):
                    self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
                    if output.finish_reason is not None:
                        self.ends[output.request_id] = output.finish_reason

    def close(self) -> None:
        self.say(Stop())
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.channel.close()


def add(name: str, **sampling: Any) -> Add:
    values = {"max_tokens": 12, "ignore_eos": True, "seed": 3, **sampling}
    return Add(name, CheckedPrompt(None, list(range(20))), values, None)


def heard(engine: Engine, *commands: Any, count: int) -> Talk:
    talk = Talk(engine)
    try:
        talk.say(*commands)
        talk.hear(count)
    finally:
        talk.close()
    assert not engine.has_work
    return talk


HOSTILE: list[Any] = [
    b"",
    b"\xff\xff",
    msgspec.msgpack.encode(["Nothing", 1, 2]),
    msgspec.msgpack.encode(["Add", "malformed", "no prompt", None, None]),
    msgspec.msgpack.encode(["Add", 5]),
    Abort(["nobody", "nothing"]),
    add("no such value", temperatur=1),
    add("out of range", temperature=-1),
    add("of a type", top_p="a"),
    add("two grammars", structured_outputs={"regex": "a", "grammar": "b"}),
    Add("of pooling", CheckedPrompt(None, [1]), None, {"dimensions": "x"}),
    Add("of nothing", CheckedPrompt(None, [1, 2]), {"n": 0}, None),
]


def test_whatever_the_engine_is_told_it_goes_on(engine: Engine) -> None:
    before = heard(engine, add("good"), count=1)
    talk = heard(engine, HOSTILE[0], add("good"), *HOSTILE, add("good"), add("after"), count=9)
    refused = set(talk.ends) - {"good", "after"}
    names = {"malformed", "no such value", "out of range", "of a type", "two grammars", "of pooling", "of nothing"}
    assert names <= refused
    assert talk.ends["after"] == "length"
    assert talk.tokens["after"] == before.tokens["good"]


def test_an_answer_that_cannot_be_told_is_its_requests_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = heard(engine, add("good"), count=1)
    real = engine_server.encode

    def encode_or_not(value: Any) -> Any:
        outputs = value.outputs if isinstance(value, Step) else [value]
        if any(isinstance(o, Tokens) and o.request_id == "victim" for o in outputs):
            raise OverflowError("injected")
        return real(value)

    monkeypatch.setattr(engine_server, "encode", encode_or_not)
    talk = heard(engine, add("good"), add("victim", logprobs=2), add("more"), count=3)
    assert "injected" in talk.ends.pop("victim")
    assert set(talk.ends.values()) == {"length"}
    assert talk.tokens["good"] == talk.tokens["more"] == before.tokens["good"]


def test_a_crowd_is_added_between_the_steps_of_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more sequences between two steps than the limit and what the last request has more; an abort is at once."""
    added: list[int] = []
    real_add, real_step = Engine.add_request, Engine.step

    def add_request(self: Engine, request_id: str, prompt: Any, params: Any, priority: int = 0) -> None:
        real_add(self, request_id, prompt, params, priority)
        added[-1] += params.n

    def step(self: Engine) -> Any:
        added.append(0)
        return real_step(self)

    monkeypatch.setattr(Engine, "add_request", add_request)
    monkeypatch.setattr(Engine, "step", step)
    added.append(0)
    crowd = [add(f"crowd {i}", n=16) for i in range(60)]
    talk = Talk(engine)
    try:
        talk.say(add("early", max_tokens=30), *crowd, Abort([c.request_id for c in crowd]), add("late"))
        while not {"early", "late"} <= set(talk.ends):
            talk.hear(len(talk.ends) + 1)
        # Those of the crowd that were added before the engine had read of their end are told of it.
        assert {reason for name, reason in talk.ends.items() if name.startswith("crowd")} <= {"abort"}
    finally:
        talk.close()
    assert max(added) <= engine_server.ADDED_PER_STEP + 16
    assert sum(added) <= 60 * 16 + 2
    assert engine.scheduler.num_waiting == 0
