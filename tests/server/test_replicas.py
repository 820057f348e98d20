"""Several engines behind one server: what goes where, and what dies with one of them."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI

from tests.adapter_folders import write_adapter
from tests.server.conftest import write_tiny
from tests.server.running import Running, server
from tests.server.test_ending import LOAD, WITHIN, folder, nothing_left, processes

pytestmark = pytest.mark.alone

__all__ = ["folder"]

REPLICAS = ("--data-parallel-size", "2", "--kv-cache-memory", "32MiB", "--served-model-name", "tiny")
LONGEST = 16384
"""Tokens of a context that no answer fills before a test is over."""
ENDLESS = {"ignore_eos": True}
LONG = {"max_tokens": 1900, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def two(tiny_model: Path) -> Iterator[Running]:
    with server(str(tiny_model), *REPLICAS) as running:
        yield running


def test_answers_are_those_of_one_engine(two: Running, tiny_server: Running) -> None:
    """Also of requests without a seed: it is drawn before they are sent anywhere."""
    bodies: list[dict[str, Any]] = [
        {"prompt": "four words are here", "max_tokens": 12, "ignore_eos": True, "temperature": 0, "logprobs": 2},
        {"prompt": ["one", "two", "three", "four"], "max_tokens": 8, "temperature": 0},
        {"prompt": "x", "max_tokens": 8, "n": 3, "seed": 11},
    ]
    for body in bodies:
        choices = [running.post("/v1/completions", body).json()["choices"] for running in (two, tiny_server)]
        assert choices[0] == choices[1]
    same = two.post("/v1/completions", {"prompt": ["x"] * 4, "max_tokens": 16, "ignore_eos": True}).json()["choices"]
    assert len({choice["text"] for choice in same}) == 4


def test_who_shares_a_beginning_goes_where_it_is(two: Running) -> None:
    """Several conversations in turn: all that they said before is found again, and both replicas have some."""
    before = two.metrics_by("engine", "prefix_cache_hits_total"), two.metrics_by("engine", "prompt_tokens_total")
    talks = [f"{name}: " + name * 100 for name in "abcdef"]
    for turn in range(1, 4):
        for talk in talks:
            body = {"prompt": talk + "more" * 12 * turn, "max_tokens": 1}
            assert two.post("/v1/completions", body).status_code == 200
    hits, tokens = (
        {k: now[k] - then.get(k, 0) for k in now}  # an engine is there from its first report on
        for now, then in zip(
            (two.metrics_by("engine", "prefix_cache_hits_total"), two.metrics_by("engine", "prompt_tokens_total")),
            before,
            strict=True,
        )
    )
    assert min(tokens.values()) > 0.3 * sum(tokens.values())
    assert sum(hits.values()) >= 6 * (2 * 96 + 48)


def test_adapters_reach_all(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path / "a", tiny_model, seed=3)
    with server(str(tiny_model), *REPLICAS, "--allow-runtime-lora-updating") as running:
        body = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        base = running.post("/v1/completions", body).json()["choices"][0]["text"]
        named = {"lora_name": "a", "lora_path": str(tmp_path / "a")}
        assert running.post("/v1/load_lora_adapter", named).status_code == 200
        texts = set()
        for _ in range(2):
            for salt in range(4):
                answer = running.post("/v1/completions", {**body, "model": "a", "cache_salt": str(salt)})
                texts.add(answer.json()["choices"][0]["text"])
            with ThreadPoolExecutor(4) as pool:
                many = [pool.submit(running.post, "/v1/completions", {**body, "model": "a"}) for _ in range(4)]
                texts |= {one.result().json()["choices"][0]["text"] for one in many}
            os.kill(running.engine_pid(), signal.SIGKILL)  # it has the adapter again when a request needs it
            running.until(lambda: running.metrics_by("state", "replicas")["running"] == 2, WITHIN)
        assert len(texts) == 1
        assert base not in texts
        missing = {"lora_name": "b", "lora_path": str(tmp_path / "nothing")}
        assert running.post("/v1/load_lora_adapter", missing).status_code == 404
        assert running.post("/v1/unload_lora_adapter", {"lora_name": "a"}).status_code == 200


def test_only_the_dead_ones_requests_fail(tmp_path: Path) -> None:
    """Those that have begun to answer; those that wait there go to the other one. The server serves all the while.

    No answer is over by itself before the engine dies: they are long, and who still gets one afterwards hangs up.
    """
    model = write_tiny(tmp_path / "tiny")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONGEST}))
    with server(str(model), *REPLICAS, "--max-num-seqs", "2") as running:
        client = OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0)
        begun, go, over = threading.Semaphore(0), threading.Event(), threading.Event()

        def ask(number: int) -> str:
            try:
                stream = client.completions.create(
                    model="tiny", prompt=f"{number} asks", max_tokens=LONGEST - 64, stream=True, extra_body=ENDLESS
                )
                for i, _ in enumerate(stream):
                    if i == 0:
                        begun.release()
                    if not go.wait(WITHIN):
                        return "nobody said go"
                    if over.is_set():
                        stream.close()
                        return "answers"
            except APIError as error:
                return "died" if "died while" in str(error) else str(error)
            return "at its end"

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, number) for number in range(8)]
            for _ in range(4):
                assert begun.acquire(timeout=WITHIN)
            running.until(
                lambda: sorted(running.metrics_by("engine", "num_requests_waiting").values()) == [2.0, 2.0], 30
            )
            os.kill(running.engine_pids()[1], signal.SIGKILL)
            running.until(lambda: running.metrics_by("state", "replicas")["running"] == 1, WITHIN)
            assert running.get("/health").status_code == 200
            go.set()
            running.until(lambda: sum(answer.done() for answer in answers) >= 2, WITHIN)
            over.set()
            ends = [answer.result() for answer in answers]
        assert sorted(ends) == ["answers"] * 6 + ["died"] * 2
        running.until(lambda: running.metrics_by("state", "replicas")["running"] == 2, WITHIN)
        assert sorted(running.metrics_by("engine", "engine_restarts_total").values()) == [0.0, 1.0]
        with ThreadPoolExecutor(8) as pool:
            more = [pool.submit(running.post, "/v1/completions", {"prompt": f"{i}", "max_tokens": 3}) for i in range(8)]
            assert {one.result().status_code for one in more} == {200}
        assert all(value > 0 for value in running.metrics_by("engine", "prompt_tokens_total").values())


def test_all_of_them_dead_and_one_given_up(tiny_model: Path) -> None:
    with server(str(tiny_model), *REPLICAS) as running, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.post, "/v1/completions", {**LONG, "prompt": f"{i}", "n": 1}) for i in range(4)]
        running.until(lambda: min(running.metrics_by("engine", "num_requests_running").values()) == 2)
        for pid in running.engine_pids():
            os.kill(pid, signal.SIGKILL)
        assert {one.result().status_code for one in asked} == {503}
        refused = running.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert refused.status_code == 200 or refused.headers["Retry-After"]
        running.until(lambda: running.metrics_by("state", "replicas")["running"] == 2, WITHIN)
        stays = running.engine_pids()[0]
        killed = set[int]()
        for _ in range(3):
            running.until(lambda: set(running.engine_pids()) - {stays} - killed, WITHIN)
            for pid in set(running.engine_pids()) - {stays}:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        running.until(lambda: running.metrics_by("state", "replicas")["dead"] == 1, WITHIN)
        assert any("not started again" in line for line in running.log)
        assert running.get("/health").status_code == 200
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_nothing_stays_after_the_server(tiny_model: Path, folder: Path, number: signal.Signals) -> None:
    """Under load, and while one of the replicas starts again."""
    with server(str(tiny_model), *REPLICAS, "--shutdown-timeout", "1", TMPDIR=str(folder)) as running:
        assert len(processes(folder)) == 2

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(running.url + "/v1/completions", json=LOAD, timeout=WITHIN)

        for _ in range(4):
            threading.Thread(target=ask, daemon=True).start()
        running.until(lambda: min(running.metrics_by("engine", "num_requests_running").values()) > 4)
        os.kill(running.engine_pid(), signal.SIGKILL)
        running.until(lambda: len(processes(folder)) == 2, WITHIN)
        running.process.send_signal(number)
        assert running.process.wait(WITHIN) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    nothing_left(folder)
    assert not list(Path("/dev/shm").glob("*octavo*"))


def test_sigterm_lets_requests_finish(tiny_model: Path) -> None:
    with server(str(tiny_model), *REPLICAS) as running, ThreadPoolExecutor(6) as pool:
        body = {**LONG, "max_tokens": 800, "stream": True}
        answers = [pool.submit(running.post, "/v1/completions", {**body, "prompt": f"{i}"}) for i in range(6)]
        running.until(lambda: running.metric("num_requests_running") == 6)
        running.process.send_signal(signal.SIGTERM)
        for answer in answers:
            lines = [line for line in answer.result().text.splitlines() if line.startswith("data: {")]
            assert json.loads(lines[-1][6:])["choices"][0]["finish_reason"] == "length"
        assert running.process.wait(WITHIN) == 0
