"""What goes wrong: each ends with an error that says so, and nothing hangs or is lost."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import Running, server

pytestmark = pytest.mark.alone

HELLO = {"role": "user", "content": "x"}
LONG = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}


def wait_idle(running: Running) -> None:
    running.until(lambda: running.metric("num_requests_running") == 0)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"prompt": "x" * 3000}, 400, "3000 tokens"),
        ("/v1/completions", {"prompt": [999]}, 400, "holds 999"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, 400, "temperature=-1"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": []}, 400, "empty"),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/completions", {"prompt": "x", "model": "gpt-9"}, 404, "gpt-9"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"a": 1}}, 400, "not a token id"),
        ("/v1/completions", {"prompt": "x", "guided_regex": "(["}, 400, "regex"),
        ("/v1/completions", {"prompt": "x", "guided_regex": ""}, 400, "regex"),
        ("/v1/completions", {"prompt": "x", "guided_choice": []}, 400, "choice"),
        ("/v1/completions", {"prompt": "x", "guided_grammar": ""}, 400, "grammar"),
        ("/v1/completions", {"prompt": "x", "guided_json": ""}, 400, "schema"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "message 0"),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
                ]
            },
            400,
            "only text parts",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"},
            400,
            "tools",
        ),
        ("/v1/embeddings", {"input": "x"}, 400, "embedding"),
        ("/detokenize", {"tokens": [100000]}, 400, "vocabulary"),
    ],
)
def test_bad_requests(tiny_server: Running, path: str, body: Any, status: int, message: str) -> None:
    answer = tiny_server.post(path, body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == status
    assert message in error["message"]


def test_what_is_not_json(tiny_server: Running) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(tiny_server.url + "/v1/completions", content=b"{oops", headers=headers)
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_50_megabytes(tiny_server: Running, announced: bool) -> None:
    body = b'{"prompt": "' + b"x" * (50 << 20) + b'"}'
    content = body if announced else (body[i : i + 65536] for i in range(0, len(body), 65536))
    try:
        answer = httpx.post(tiny_server.url + "/v1/completions", content=content, timeout=30)
        assert answer.status_code == 413
    except httpx.WriteError:
        assert announced  # the server has answered and closed before all was sent
    assert tiny_server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_client_that_goes_frees_its_blocks(tiny_server: Running) -> None:
    wait_idle(tiny_server)
    before = tiny_server.metric("kv_cache_usage_perc")
    with httpx.stream("POST", tiny_server.url + "/v1/completions", json={**LONG, "n": 4}, timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        tiny_server.until(lambda: tiny_server.metric("num_requests_running") == 4)
    wait_idle(tiny_server)
    assert tiny_server.metric("kv_cache_usage_perc") == before
    # And one that waits for a whole answer.
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(tiny_server.url + "/v1/completions", json={**LONG, "stream": False, "n": 64}, timeout=0.3)
    wait_idle(tiny_server)


def test_a_stream_whose_client_goes_before_its_first_event(tiny_model: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "32MiB", "--max-num-seqs", "1") as running:
        body = {**LONG, "n": 64}
        with httpx.stream("POST", running.url + "/v1/completions", json=body, timeout=30) as first:
            lines = first.iter_lines()
            next(lines)
            running.until(lambda: running.metric("num_requests_waiting") > 0)
            for path, body in (
                ("/v1/completions", LONG),
                ("/v1/chat/completions", {**LONG, "messages": [HELLO], "prompt": None}),
            ):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(running.url + path, json=body, timeout=0.2)
            running.until(lambda: sum("client gone" in line for line in running.log) == 2)  # not when its turn comes
            next(lines)  # the first goes on


@pytest.mark.parametrize("n", [1, 3])
def test_values_that_leave_no_token_are_the_clients(tiny_server: Running, n: int) -> None:
    """What shows only while it runs is a 400 as well; in a stream, an event that says so before its end."""
    [allowed] = tiny_server.post("/tokenize", {"prompt": "a"}).json()["tokens"]
    body = {"prompt": "x", "guided_regex": "a{4}b", "allowed_token_ids": [allowed], "n": n, "temperature": 1}
    answer = tiny_server.post("/v1/completions", body)
    assert answer.status_code == 400
    assert "no token may come next" in answer.json()["error"]["message"]
    streamed = tiny_server.post("/v1/completions", {**body, "stream": True})
    if streamed.status_code == 200:  # 400 where nothing was sent before
        events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == 400
    else:
        assert streamed.status_code == 400
    wait_idle(tiny_server)


def test_slow_reader_gets_everything(tiny_server: Running) -> None:
    """A client that reads nothing for a while holds up nobody, and misses nothing."""
    text = ""
    with httpx.stream("POST", tiny_server.url + "/v1/completions", json={**LONG, "temperature": 0}, timeout=60) as slow:
        start = time.monotonic()
        assert tiny_server.post("/v1/completions", {"prompt": "y", "max_tokens": 5}).status_code == 200
        assert time.monotonic() - start < 5
        time.sleep(1)
        for line in slow.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
    whole = tiny_server.post("/v1/completions", {**LONG, "temperature": 0, "stream": False}).json()
    assert text == whole["choices"][0]["text"]


def test_engine_killed_in_mid_stream(tiny_model: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "32MiB") as running:
        with httpx.stream("POST", running.url + "/v1/completions", json=LONG, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(running.engine_pid(), signal.SIGKILL)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["error"]["code"] == 503
        seen: set[int] = set()

        def answers() -> bool:
            seen.add(running.get("/health").status_code)
            return 200 in seen and running.get("/health").status_code == 200 and 503 in seen

        running.until(lambda: running.get("/health").status_code == 503 or answers())
        refused = running.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
        assert refused.status_code in (200, 503)
        running.until(lambda: running.get("/health").status_code == 200)
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_an_engine_that_keeps_dying_is_given_up(tiny_model: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "32MiB") as running:
        for _ in range(4):
            running.until(lambda: running.get("/health").status_code == 200)
            os.kill(running.engine_pid(), signal.SIGKILL)
            running.until(lambda: running.get("/health").status_code == 503)
        running.until(lambda: any("not started again" in line for line in running.log))
        assert running.post("/v1/completions", {"prompt": "x"}).status_code == 503


def test_sigterm_lets_requests_finish(tiny_model: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "64MiB") as running:
        body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True}
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(running.post, "/v1/completions", body) for _ in range(8)]
            running.until(lambda: running.metric("num_requests_running") == 8)
            running.process.send_signal(signal.SIGTERM)
            assert [a.result().json()["usage"]["completion_tokens"] for a in answers] == [1500] * 8
        assert running.process.wait(60) == 0


def test_sigterm_ends_what_takes_too_long(tiny_model: Path) -> None:
    """Who still waits is told so: by a 503, and in a stream by an event."""
    body = {**LONG, "n": 64}
    with server(
        str(tiny_model), "--kv-cache-memory", "64MiB", "--max-num-seqs", "32", "--shutdown-timeout", "1"
    ) as running:
        with ThreadPoolExecutor(3) as pool:
            wholes = [pool.submit(running.post, "/v1/completions", {**body, "stream": False}) for _ in range(2)]
            stream = pool.submit(running.post, "/v1/completions", body)
            running.until(lambda: running.metric("num_requests_waiting") == 3 * 64 - 32)
            running.process.send_signal(signal.SIGTERM)
            for whole in wholes:
                assert whole.result().status_code == 503
                assert "shutting down" in whole.result().json()["error"]["message"]
            if stream.result().status_code == 200:
                events = [line for line in stream.result().text.splitlines() if line]
                assert events[-1] == "data: [DONE]"
                assert json.loads(events[-2][6:])["error"]["code"] == 503
            else:
                assert stream.result().status_code == 503
        assert running.process.wait(60) == 0
        assert not any("Traceback" in line for line in running.log)


def test_keys(tiny_model: Path) -> None:
    with server(
        str(tiny_model), "--kv-cache-memory", "16MiB", "--api-key", "one", "--api-key", "two", OCTAVO_API_KEY="three"
    ) as running:
        for path in ("/v1/models", "/tokenize"):
            assert running.get(path).status_code == 401
        assert running.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        for key in ("one", "two", "three"):
            assert running.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert running.get("/health").status_code == 200


def test_too_many_requests_and_too_long_ones(tiny_model: Path) -> None:
    limits = ("--max-queued-requests", "2", "--request-timeout", "1.5")
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", *limits) as running:
        with ThreadPoolExecutor(2) as pool:
            body = {**LONG, "stream": False, "n": 64}  # more than any processor gives in that time
            running_long = [pool.submit(running.post, "/v1/completions", body) for _ in range(2)]
            running.until(lambda: running.metric("num_requests_running") > 0)
            time.sleep(0.2)
            refused = running.post("/v1/completions", {"prompt": "x"})
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert {a.result().status_code for a in running_long} == {504}
        wait_idle(running)
        assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status_code == 200


def test_an_address_in_use_is_said_before_the_model_loads(tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(AssertionError, match="Choose another --port"), server(str(tiny_model), "--port", port):
            pass


def test_a_model_that_does_not_load_ends_the_server() -> None:
    with pytest.raises(AssertionError, match="tried the path"), server("/nosuch/model"):
        pass


def test_log_lines_have_no_prompts_unless_asked(tiny_model: Path, tiny_server: Running) -> None:
    tiny_server.post("/v1/completions", {"prompt": "my secret", "max_tokens": 2}, headers={"X-Request-Id": "abc"})
    tiny_server.until(lambda: any('"id": "abc"' in line for line in tiny_server.log))
    line = json.loads(next(line for line in tiny_server.log if '"id": "abc"' in line))
    assert (line["status"], line["completion_tokens"], line["finish"]) == (200, 2, "length")
    assert not any("my secret" in line for line in tiny_server.log)
    with server(str(tiny_model), "--kv-cache-memory", "16MiB", "--log-prompts") as running:
        running.post("/v1/completions", {"prompt": "my secret", "max_tokens": 2})
        running.until(lambda: any("my secret" in line for line in running.log))


def test_pages_of_allowed_origins_may_call_and_others_not(tiny_model: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "16MiB", "--allowed-origins", "https://a.example") as running:
        for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = httpx.options(running.url + "/v1/completions", headers=headers)
            assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_https(tiny_model: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        *subject,
    ]
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    files = ("--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    with server(str(tiny_model), "--kv-cache-memory", "16MiB", *files) as running:
        assert running.url.startswith("https://")
        body = {"prompt": "x", "max_tokens": 2}
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.post(running.url + "/v1/completions", json=body, verify=trusting).status_code == 200
