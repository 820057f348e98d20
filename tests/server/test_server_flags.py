"""vLLM's flags of a server, each by what it does."""

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.cli.main import build_parser
from octavo.cli.parser import Parser
from octavo.cli.vllm_flags import Taken
from octavo.errors import ConfigError
from octavo.server import listening
from octavo.server.app import create_app
from octavo.server.listening import listen, refresh_certificate
from octavo.server.metrics import Metrics, RequestClock, Stats
from octavo.server.middleware import KeepAlive
from octavo.server.server_options import ServerOptions
from octavo.server.stats_log import StatsLog
from octavo.text.chat_prompt import chat_prompt
from octavo.vllm_options import all_rows
from tests.server.running import Running, server
from tests.server.scripted import ScriptedClient, byte_tokenizer, service

LIST = Path(__file__).parent.parent / "cli" / "vllm_serve_flags.txt"
ROWS = [line.split() for line in LIST.read_text().splitlines() if not line.startswith("#")]
BUILT = """
--config --pooler-config --override-pooler-config --override-generation-config --generation-config --chat-template
--chat-template-content-format --enable-log-requests --max-log-len --disable-log-stats --uvicorn-log-level
--disable-uvicorn-access-log --log-config-file --allow-credentials --allowed-methods --allowed-headers --allowed-origins
--enable-force-include-usage --return-tokens-as-token-ids --uds --ssl-ca-certs --middleware --served-model-name
--disable-fastapi-docs --hf-overrides --kv-cache-memory-bytes --runner --convert --structured-outputs-config
--default-chat-template-kwargs --api-key -tp -pp -dp -q --max-num-queued-reqs --language-model-only --log-level
"""
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}


def serve_parser() -> Parser:
    commands = build_parser()._subparsers
    assert commands is not None
    choices: Any = commands._group_actions[0].choices
    return choices["serve"]  # type: ignore[no-any-return]


def test_all_flags_of_vllm_are_known() -> None:
    flags = serve_parser().flags
    assert len(ROWS) >= 320
    assert [name for row in ROWS for name in row[:-1] if name not in flags] == []


def test_flags_take_what_vllm_has_behind_them() -> None:
    """A switch stands alone, other flags have a value, lists several."""
    flags, wrong = serve_parser().flags, []
    for *names, kind in ROWS:
        action = flags[names[0]]
        alone = action.nargs == 0
        several = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
        if alone != (kind == "switch") or (kind == "list" and not several):
            wrong.append(names[0])
    assert wrong == []


def test_the_table_has_each_option_once_and_none_that_the_server_has() -> None:
    rows = list(all_rows())
    names = [row.name for row in rows]
    assert sorted(names) == sorted({*names})
    servers = {f.name for f in dataclasses.fields(ServerOptions)}
    assert [row.name for row in rows if row.of == "server" and row.name in servers] == []


def test_what_is_built_is_built() -> None:
    flags = serve_parser().flags
    assert [name for name in BUILT.split() if isinstance(flags[name], Taken)] == []


@pytest.fixture(scope="module")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "config.yaml").write_text(
        "max-model-len: 512\nkv-cache-memory-bytes: 64M\nmiddleware: [tests.server.site_middleware.Stamp]\n"
    )
    flags = [
        *("--config", str(folder / "config.yaml"), "--middleware", "tests.server.site_middleware.Stamp"),
        *("--middleware", "tests.server.site_middleware.also", "--served-model-name", "tiny", "small"),
        *("--allowed-origins", '["https://a.example"]', "--allowed-methods", '["POST"]', "--allow-credentials"),
        *("--enable-force-include-usage", "--return-tokens-as-token-ids", "--disable-fastapi-docs"),
        *("--enable-log-requests", "--enable-log-outputs", "--log-prompts", "--max-log-len", "4"),
        *("--disable-access-log-for-endpoints", "/v1/models, /version", "--response-role", "helper"),
        *("--chat-template", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ mood }}<answer>"),
        *("--default-chat-template-kwargs", '{"mood": "calm"}', "--override-generation-config.max_new_tokens", "5"),
    ]
    with server(str(tiny_model), *flags, VLLM_API_KEY="of-vllm", OCTAVO_API_KEY="one,two") as one:
        yield one


def key(name: str = "of-vllm") -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def logged(running: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.log if line.startswith("{")]


def test_keys_of_the_environment(running: Running) -> None:
    for name, status in (("of-vllm", 200), ("one", 200), ("two", 200), ("one,two", 401), ("x", 401)):
        assert running.get("/v1/models", headers=key(name)).status_code == status
    assert running.get("/v1/models").status_code == 401
    assert running.post("/v1/chat/completions", HELLO).status_code == 401


def test_names(running: Running) -> None:
    for name in ("tiny", "small"):
        answer = running.post("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1}, headers=key())
        assert answer.json()["model"] == "tiny"
    assert running.post("/v1/completions", {"model": "x", "prompt": "a"}, headers=key()).status_code == 404
    cards = running.get("/v1/models", headers=key()).json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "small"]
    root = cards[0]["root"]  # a name with slashes
    for card in (*cards, {**cards[0], "id": root, "display_name": root}):
        assert running.get(f"/v1/models/{card['id']}", headers=key()).json() == card
    assert running.get("/v1/models/x", headers=key()).status_code == 404
    assert running.get("/v1/models/tiny").status_code == 401


def test_middleware_and_documents(running: Running) -> None:
    answer = running.get("/health")
    assert (answer.headers["x-stamp"], answer.headers["x-also"]) == ("class", "function")
    assert running.get("/openapi.json").status_code == 404


def test_cross_origin(running: Running) -> None:
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(running.url + "/v1/models", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert allowed.headers["access-control-allow-credentials"] == "true"
    asks["Access-Control-Request-Method"] = "DELETE"
    assert httpx.options(running.url + "/v1/models", headers=asks).status_code == 400
    other = running.get("/health", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_chats_and_the_log(running: Running) -> None:
    body = {**HELLO, "logprobs": True}
    named = {**key(), "X-Request-Id": "the-chat"}  # other tests' lines may come while this one's is still to come
    answer = running.post("/v1/chat/completions", body, headers=named).json()
    assert answer["choices"][0]["message"]["role"] == "helper"
    assert answer["choices"][0]["logprobs"]["content"][0]["token"].startswith("token_id:")
    running.until(lambda: any(line["id"] == "the-chat" for line in logged(running)))
    line = next(line for line in logged(running) if line["id"] == "the-chat")
    assert line["prompt"] == "<use"
    assert line["params"] == {"temperature": 0, "max_tokens": 3, "logprobs": 0}
    assert all(len(text) <= 4 for text in line["answers"])
    assert not any(line["path"] == "/v1/models" for line in logged(running))


def test_defaults_of_the_template_and_of_sampling(running: Running) -> None:
    template = {"messages": HELLO["messages"]}
    count = running.post("/tokenize", template, headers=key()).json()["count"]
    other = running.post("/tokenize", {**template, "chat_template_kwargs": {"mood": ""}}, headers=key()).json()["count"]
    assert count - other == len("calm")
    answer = running.post("/v1/chat/completions", template, headers=key()).json()
    assert answer["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_is_told_at_the_end_of_every_stream(running: Running, path: str) -> None:
    body = {"prompt": "a", **HELLO, "stream": True}
    lines = running.post(path, body, headers=key()).text.split("\n\n")
    last = json.loads([line for line in lines if line.startswith("data: {")][-1][6:])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3


def test_a_template_of_a_request_needs_trust() -> None:
    async def ask(**options: Any) -> httpx.Response:
        made = service(byte_tokenizer("</s>"), ScriptedClient([[65]], "stop", ()), **options)
        transport = httpx.ASGITransport(app=create_app(made))
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
            return await client.post(
                "/v1/chat/completions", json={**HELLO, "chat_template": "{{ messages[0].content }}"}
            )

    assert asyncio.run(ask()).status_code == 400
    assert asyncio.run(ask(trust_request_chat_template=True)).status_code == 200


@pytest.mark.parametrize(("effort", "told"), [("medium", "low"), ("low", "tiny"), ("high", "high")])
def test_reasoning_efforts_are_mapped_once(effort: str, told: str) -> None:
    tokenizer = byte_tokenizer("</s>")
    options = {"reasoning_effort_map": {"medium": "low", "low": "tiny"}, "chat_template": "{{ reasoning_effort }}"}

    async def ask() -> str:
        client = ScriptedClient([[65]], "stop", ())
        seen: list[list[int]] = []
        add = client.add
        client.add = lambda i, p, *more: (seen.append(p.token_ids), add(i, p, *more))[1]  # type: ignore[method-assign]
        transport = httpx.ASGITransport(app=create_app(service(tokenizer, client, **options)))
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as http:
            answer = await http.post("/v1/chat/completions", json={**HELLO, "reasoning_effort": effort})
        assert answer.status_code == 200, answer.text
        return tokenizer.decode(seen[0], True)

    assert asyncio.run(ask()) == told


@pytest.mark.parametrize(
    ("content_format", "content", "shown"),
    [
        ("auto", "Hi", "text:Hi"),
        ("string", [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}], "text:Hi\nyou"),
        ("openai", "Hi", "part:Hi"),
        ("openai", [{"type": "text", "text": "Hi"}], "part:Hi"),
    ],
)
def test_content_formats(content_format: str, content: Any, shown: str) -> None:
    tokenizer = byte_tokenizer()
    template = (
        "{% for m in messages %}{% if m.content is string %}text:{{ m.content }}{% else %}"
        "{% for p in m.content %}part:{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    messages = [{"role": "user", "content": content}]
    assert chat_prompt(tokenizer, messages, template=template, content_format=content_format)["prompt"] == shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"api_key": [""]}, "api_key holds ''"),
        ({"api_key": ["[1]"]}, "api_key holds 1"),
        ({"allowed_origins": ["[1"]}, "not a JSON list"),
        ({"ssl_ca_certs": "x"}, "ssl_ca_certs needs ssl_certfile"),
        ({"ssl_certfile": "a", "ssl_keyfile": "b", "ssl_cert_reqs": 2}, "needs ssl_ca_certs"),
        ({"ssl_cert_reqs": 7, "ssl_certfile": "a", "ssl_keyfile": "b"}, "must be 0, 1 or 2"),
        ({"uvicorn_log_level": "loud"}, "uvicorn_log_level='loud'"),
        ({"log_level": "loud"}, "log_level='LOUD'"),
        ({"logging_config": {"levle": 1}}, "no 'levle'. Did you mean log_level"),
        ({"logging_config": {"formatter": "xml"}}, "choose text or json"),
        ({"enable_log_outputs": True}, "needs enable_log_requests"),
        ({"max_log_len": -1}, "0 or more"),
        ({"default_chat_template_kwargs": {"messages": 1}}, "template's own"),
        ({"default_chat_template_kwargs": "{"}, "must be a dict"),
        ({"reasoning_effort_map": {"a": 1}}, "no effort"),
        ({"structured_outputs_config": {"backned": 1}}, "Did you mean backend"),
        ({"structured_outputs_config": {"enable_in_reasoning": True}}, "thoughts are free"),
        ({"structured_outputs_config": {"reasoning_parser": "x"}}, "reasoning_parser='x'"),
        ({"sse_keep_alive_interval": -1.0}, "0 or more"),
        ({"port": "80"}, "port='80' must be a whole number"),
        ({"disable_log_stats": "yes"}, "must be True or False"),
        ({"served_model_name": [" "]}, "is a variable unset?"),
        ({"chat_template_content_format": "xml"}, "choose one of auto, string, openai"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        ServerOptions(**given)


@pytest.mark.parametrize(
    ("name", "value"), [("OCTAVO_API_KEY", ","), ("OCTAVO_API_KEY", "a,,b"), ("VLLM_API_KEY", " ")]
)
def test_a_server_is_not_left_open_by_a_key_that_is_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is set, and holds an empty key"):
        ServerOptions()


def test_lists_in_all_spellings() -> None:
    options = ServerOptions(allowed_origins=['["a", "b"]', "c"], served_model_name="one")  # type: ignore[arg-type]
    assert (options.allowed_origins, options.served_model_name) == (["a", "b", "c"], ["one"])
    assert ServerOptions(structured_outputs_config={"reasoning_parser": "qwen3"}).reasoning_parser == "qwen3"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuchmodule.Name", "cannot be imported"),
        ("tests.server.site_middleware.Other", "cannot be imported"),
        ("tests.server.site_middleware.nothing", "neither a class nor a coroutine function"),
        ("json", "cannot be imported"),
    ],
)
def test_middleware_that_is_none(name: str, said: str) -> None:
    made = service(byte_tokenizer(), ScriptedClient([], "stop", ()), middleware=[name])
    with pytest.raises(ConfigError, match=said):
        create_app(made)


def test_chat_templates(tmp_path: Path) -> None:
    (tmp_path / "a.jinja").write_text("{{ 1 }}")
    assert ServerOptions(chat_template=str(tmp_path / "a.jinja")).template_text() == "{{ 1 }}"
    assert ServerOptions(chat_template="{% if a %}b{% endif %}").template_text() == "{% if a %}b{% endif %}"
    os.mkfifo(tmp_path / "fifo")
    for name in ("none.jinja", "fifo"):
        with pytest.raises(ConfigError, match="no file that can be read"):
            ServerOptions(chat_template=str(tmp_path / name)).template_text()


def test_sockets_at_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    options = ServerOptions(uds=path)
    first = listen(options)
    with pytest.raises(ConfigError, match="another server listens there"):
        listen(options)
    first.close()
    second = listen(options)  # what the first has left is taken away
    assert listening.address(options, second) == f"unix:{path}"
    second.close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="a file is there"):
        listen(ServerOptions(uds=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def certificate(folder: Path, name: str) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)


def test_certificates_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    monkeypatch.setattr(listening, "REFRESH", 0.01)
    certificate(tmp_path, "one")
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    options = ServerOptions(enable_ssl_refresh=True, **files)  # type: ignore[arg-type]

    async def run() -> list[bytes]:
        config = uvicorn.Config("x", **files)  # type: ignore[arg-type]
        config.load_ssl = None  # type: ignore[attr-defined]
        config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        config.ssl.load_cert_chain(files["ssl_certfile"], files["ssl_keyfile"])
        listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=config.ssl)
        port = listener.sockets[0].getsockname()[1]
        task = asyncio.create_task(refresh_certificate(config, options))

        def seen() -> bytes:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as wrapped:
                return wrapped.getpeercert(binary_form=True) or b""

        found = [await asyncio.to_thread(seen)]
        certificate(tmp_path, "two")
        while len(found) < 2:
            if (now := await asyncio.to_thread(seen)) != found[0]:
                found.append(now)
        task.cancel()
        listener.close()
        return found

    first, second = asyncio.run(asyncio.wait_for(run(), 60))
    assert first != second


def test_silent_streams_are_kept_alive() -> None:
    sent: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind = scope["kind"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        while kind == b"text/event-stream" and len(sent) < 3:
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    async def send(message: Any) -> None:
        if "body" in message:
            sent.append(message["body"])

    async def run(kind: bytes) -> list[bytes]:
        sent.clear()
        await KeepAlive(app, 0.01)({"type": "http", "kind": kind}, None, send)  # type: ignore[arg-type, typeddict-item]
        return list(sent)

    *comments, last = asyncio.run(run(b"text/event-stream"))
    assert (set(comments), last) == ({b": keep-alive\n\n"}, b"end")
    assert len(comments) >= 3
    assert asyncio.run(run(b"application/json")) == [b"end"]


def test_numbers_are_logged_while_there_is_work() -> None:
    metrics = Metrics("m")
    told = StatsLog(metrics)
    assert told.line() is None
    metrics.take(Stats(running=2, waiting=1, used_blocks=1, prompt_tokens=100, cached_tokens=25), 4, 0)
    RequestClock(metrics).on_tokens(50)
    line = told.line()
    assert line is not None
    assert "running: 2, waiting: 1, KV cache used: 25.0%, prefix cache hits: 25.0%" in line
    metrics.take(Stats(prompt_tokens=100, cached_tokens=25), 4, 0)
    assert told.line() is None


def test_logs_by_a_file_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [logging.getLogger(name) for name in ("octavo", "octavo.requests")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    try:
        ServerOptions(logging_config={"formatter": "json", "log_level": "WARNING"}).start_logs()
        loggers[0].info("unheard")
        loggers[0].warning("heard")
        assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["heard"]
        handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "log")}
        config = {"version": 1, "handlers": {"file": handler}, "loggers": {"octavo": {"handlers": ["file"]}}}
        (tmp_path / "log.json").write_text(json.dumps({**config, "disable_existing_loggers": False}))
        ServerOptions(log_config_file=str(tmp_path / "log.json")).start_logs()
        loggers[0].warning("written")
        assert (tmp_path / "log").read_text() == "written\n"
        (tmp_path / "log.json").write_text('{"version": 7}')
        monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", str(tmp_path / "log.json"))
        with pytest.raises(ConfigError, match="cannot be used"):
            ServerOptions().start_logs()
        ServerOptions(disable_uvicorn_access_log=True, log_config_file=None)
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)
