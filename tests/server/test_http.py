"""HTTP itself: where requests end, who may ask, what the log may hold, what a body is."""

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.server.admission import OverloadedError
from octavo.server.app import create_app
from octavo.server.framing import HEADERS_MAX
from octavo.server.request_log import printable
from octavo.server.server_options import ServerOptions
from octavo.server.service import RequestTimeoutError, Service
from tests.server.running import Running, server

BODY = b'{"prompt":"x","max_tokens":1}'
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
ONE = b"%x\r\n" % len(BODY)
ORIGIN = "https://a.example"


def with_encoding(value: bytes) -> bytes:
    return POST + b"Transfer-Encoding:" + value + b"\r\n\r\n" + CHUNKS


def with_length(value: bytes) -> bytes:
    return POST + b"Content-Length:" + value + b"\r\n\r\n" + BODY


REFUSED: dict[str, bytes] = {
    "identity before chunked": with_encoding(b" identity, chunked"),
    "another coding before chunked": with_encoding(b" gzip, chunked"),
    "chunked, then identity": with_encoding(b" chunked, identity"),
    "chunked twice in a line": with_encoding(b" chunked, chunked"),
    "chunked in two lines": with_encoding(b" chunked\r\nTransfer-Encoding: chunked"),
    "chunked and identity in two lines": with_encoding(b" identity\r\nTransfer-Encoding: chunked"),
    "chunked with a parameter": with_encoding(b" chunked;q=1"),
    "chunked in quotes": with_encoding(b' "chunked"'),
    "another word": with_encoding(b" xchunked"),
    "an empty list's item": with_encoding(b" ,chunked"),
    "vertical tab": with_encoding(b" \x0bchunked"),
    "form feed": with_encoding(b" chunked\x0c"),
    "zero byte": with_encoding(b" chunked\0"),
    "no-break space": with_encoding(b"\xa0chunked"),
    "folded": with_encoding(b"\r\n chunked"),
    "folded after": with_encoding(b" chunked\r\n , identity"),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS),
    "no encoding at all": POST + b"Transfer-Encoding:\r\nContent-Length: 29\r\n\r\n" + BODY,
    "only identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 29\r\n\r\n" + BODY,
    "encoding, then length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKS,
    "length, then encoding": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "HTTP/1.0 in chunks": CHUNKED.replace(b"1.1", b"1.0") + CHUNKS,
    "two lengths": with_length(b" 29\r\nContent-Length: 0"),
    "two equal lengths": with_length(b" 29\r\nContent-Length: 29"),
    "a list of lengths": with_length(b" 29, 29"),
    "a sign": with_length(b" +29"),
    "below zero": with_length(b" -1"),
    "hexadecimal": with_length(b" 0x1d"),
    "spaces in a length": with_length(b" 2 9"),
    "a folded length": with_length(b" 2\r\n 9"),
    "a length beyond 64 bits": with_length(b" 18446744073709551645"),
    "no length": with_length(b""),
    "line feeds alone": CHUNKED.replace(b"\r\n", b"\n") + CHUNKS,
    "one line feed alone": POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "a carriage return alone": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "a chunk's line feed alone": CHUNKED + CHUNKS.replace(b"\r\n", b"\n"),
    "a line feed in an extension": CHUNKED + CHUNKS.replace(ONE, b"1d;a\n0\r\n"),
    "a space after a chunk's size": CHUNKED + CHUNKS.replace(ONE, b"1d \r\n"),
    "a chunk's size in C's notation": CHUNKED + CHUNKS.replace(ONE, b"0x1d\r\n"),
    "a chunk's size below zero": CHUNKED + CHUNKS.replace(ONE, b"-1d\r\n"),
    "a chunk's size beyond 64 bits": CHUNKED + CHUNKS.replace(ONE, b"1000000000000001d\r\n"),
    "a chunk longer than its size": CHUNKED + CHUNKS.replace(BODY, BODY + b"xx"),
    "encoding in the trailers": CHUNKED + CHUNKS[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    "length in the trailers": CHUNKED + CHUNKS[:-2] + b"Content-Length: 50\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "two hosts": HEALTH + b"Host: b\r\n\r\n",
    "an upgrade with a body": POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a name with a space": POST + b"X Y: a\r\nContent-Length: 29\r\n\r\n" + BODY,
    "no colon": POST + b"abc\r\nContent-Length: 29\r\n\r\n" + BODY,
    "a tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "another version": POST.replace(b"1.1", b"1.2") + b"Content-Length: 29\r\n\r\n" + BODY,
    "long headers": POST + b"X: %s\r\n\r\n" % (b"y" * HEADERS_MAX),
    "many headers": POST + b"X: y\r\n" * HEADERS_MAX + b"\r\n",
    "a long address": b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"y" * HEADERS_MAX),
}
"""Requests of which two readers could find another end, or that are none."""

TAKEN: dict[str, bytes] = {
    "a length": with_length(b" 29"),
    "a length after tabs": with_length(b"\t29\t"),
    "chunks": CHUNKED + CHUNKS,
    "chunks by a name in capitals": with_encoding(b" CHUNKED"),
    "chunks with an extension": CHUNKED + CHUNKS.replace(ONE, b"1d;a=b\r\n"),
    "trailers": CHUNKED + CHUNKS[:-2] + b"X-Sum: 5\r\nContent-Type: text/plain\r\n\r\n",
    "an upgrade that is left aside": HEALTH + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    "an expectation": POST + b"Expect: 100-continue\r\nContent-Length: 29\r\n\r\n" + BODY,
}


@pytest.fixture(scope="module")
def running(tiny_model: Path) -> Iterator[Running]:
    flags = ("--max-model-len", "64", "--max-body-size", "100KiB", "--api-key", "one", "--allowed-origins", ORIGIN)
    with server(str(tiny_model), "--kv-cache-memory", "16MiB", *flags) as one:
        yield one


def talk(running: Running, data: bytes, pieces: int = 1) -> bytes:
    """What comes back until the server closes."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = -(-len(data) // pieces)
        received = b""
        try:
            for i in range(0, len(data), size):
                connection.sendall(data[i : i + size])
            while more := connection.recv(65536):
                received += more
        except ConnectionError:  # it closed while we were sending
            pass
        return received


def statuses(received: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", received)]


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("name", REFUSED)
def test_what_could_end_elsewhere_is_refused(tiny_server: Running, name: str, pieces: int) -> None:
    received = talk(tiny_server, REFUSED[name] + NEXT, pieces)
    assert statuses(received) in ([400], []), received  # none, where it closes before all has come
    assert received or pieces > 1 or len(REFUSED[name]) > HEADERS_MAX
    if received:
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["code"] == 400


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("name", TAKEN)
def test_what_ends_in_one_way_is_answered(tiny_server: Running, name: str, pieces: int) -> None:
    received = talk(tiny_server, TAKEN[name].replace(b"Host: a", b"Host: a\r\nConnection: close"), pieces)
    assert statuses(received) in ([200], [100, 200]), received


def test_endless_headers_are_not_read(tiny_server: Running) -> None:
    host, _, port = tiny_server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, pytest.raises(ConnectionError):
        connection.sendall(POST + b"X: " + b"y" * (64 << 20))
    assert tiny_server.get("/health").status_code == 200


def test_nothing_is_redirected(tiny_server: Running) -> None:
    for path in ("/health/", "/v1/models/", "/v1/completions/", "/stats/"):
        for method in ("GET", "POST"):
            answer = httpx.request(method, tiny_server.url + path, headers={"Host": "evil.example"})
            assert answer.status_code == 404
            assert "evil" not in answer.text + str(answer.headers)


SOUND = {"prompt": "x", "max_tokens": 1}


@pytest.mark.parametrize(
    ("status", "method", "path", "options"),
    [
        (200, "POST", "/v1/completions", {"json": SOUND}),
        (400, "POST", "/v1/completions", {"json": {"prompt": []}}),
        (400, "POST", "/v1/completions", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (401, "POST", "/v1/completions", {"json": SOUND, "headers": {"Authorization": "Bearer two"}}),
        (404, "GET", "/nowhere", {}),
        (404, "POST", "/v1/completions", {"json": {**SOUND, "model": "other"}}),
        (405, "GET", "/v1/completions", {}),
        (413, "POST", "/v1/completions", {"json": {"prompt": "x" * 200_000}}),
        (
            413,
            "POST",
            "/v1/completions",
            {"content": iter([b"x" * 200_000]), "headers": {"Content-Type": "application/json"}},
        ),
        (415, "POST", "/v1/completions", {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
    ],
)
def test_pages_may_read_every_answer(
    running: Running, status: int, method: str, path: str, options: dict[str, Any]
) -> None:
    headers = {"Origin": ORIGIN, "X-Request-Id": "mine", "Authorization": "Bearer one", **options.pop("headers", {})}
    answer = httpx.request(method, running.url + path, headers=headers, timeout=30, **options)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"] == "mine"
    assert "error" in answer.json() or status == 200
    other = httpx.get(running.url + "/nowhere", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OverloadedError("full"), 429),
        (EngineDeadError("dead"), 503),
        (RequestTimeoutError("late"), 504),
        (InvalidRequestError("wrong \ud800"), 400),
        (RuntimeError("a defect"), 500),
    ],
)
def test_pages_may_read_what_goes_wrong_inside(error: Exception, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(EngineArgs("nothing"), ServerOptions(allowed_origins=[ORIGIN]))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(service, "accept", fail)
    app = create_app(service)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            return await client.post("/v1/completions", json=SOUND, headers={"Origin": ORIGIN})

    answer = asyncio.run(ask())
    assert answer.status_code == answer.json()["error"]["code"] == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "name",
    [
        b"\xc2\x9b31m",
        b"\x9b31m",
        "\u202eabc".encode(),
        "\u2028".encode(),
        b"a b",
        b"x" * 129,
        b"\xed\xa0\x80",
        b"",
        b"a\tb",
    ],
)
def test_odd_request_ids_are_replaced(tiny_server: Running, name: bytes) -> None:
    answer = httpx.get(tiny_server.url + "/v1/models", headers=[(b"X-Request-Id", name)])
    given = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", given)
    tiny_server.until(lambda: any(given in line for line in tiny_server.log))
    assert all(line.rstrip("\n").isprintable() for line in tiny_server.log)


def test_usual_request_ids_are_kept(tiny_server: Running) -> None:
    for name in ("123e4567-e89b-12d3-a456-426614174000", "a/b:c=d+e_f.g", "x" * 128):
        assert tiny_server.get("/v1/models", headers={"X-Request-Id": name}).headers["x-request-id"] == name


def test_paths_are_escaped_in_the_log(tiny_server: Running) -> None:
    tiny_server.get("/%C2%9B31m%E2%80%AEabc%0A%7Fend-of-path")
    tiny_server.until(lambda: any("end-of-path" in line for line in tiny_server.log))
    line = next(line for line in tiny_server.log if "end-of-path" in line).rstrip("\n")
    assert line.isprintable()
    assert json.loads(line)["path"] == "/\x9b31m\u202eabc\n\x7fend-of-path"


def test_what_people_read_is_not_escaped() -> None:
    text = json.dumps({"prompt": "Füße 猫 🙂 \ud800\u202e\U000e0001"}, ensure_ascii=False)
    assert printable(text).startswith('{"prompt": "Füße 猫 🙂 \\ud800\\u202e')
    assert json.loads(printable(text)) == json.loads(text)


def test_head_is_get_without_a_body(tiny_server: Running) -> None:
    paths = [
        p
        for p, methods in tiny_server.get("/openapi.json").json()["paths"].items()
        if "get" in methods and "{" not in p
    ]
    assert len(paths) > 4
    for path in (*paths, "/", "/stats", "/openapi.json"):
        answer = httpx.head(tiny_server.url + path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert path == "/metrics" or answer.headers["content-length"] == str(len(tiny_server.get(path).content))
    assert httpx.head(tiny_server.url + "/v1/completions").status_code == 405
    assert httpx.head(tiny_server.url + "/nowhere").status_code == 404


JSON = json.dumps({**SOUND, "user": "é"}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", JSON.encode(), 200),
        ("application/json; charset=utf-8", JSON.encode(), 200),
        ('APPLICATION/JSON;Charset="UTF8"', JSON.encode(), 200),
        ("application/json; charset=us-ascii", b'{"prompt": "x", "max_tokens": 1}', 200),
        ("application/vnd.api+json", JSON.encode(), 200),
        (None, JSON.encode(), 200),
        ("application/json", b"\xef\xbb\xbf" + JSON.encode(), 200),
        ("application/json", b'{"prompt": "x", "max_tokens": 64000, "max_tokens": 1}', 200),
        ("text/plain", JSON.encode(), 415),
        ("", JSON.encode(), 415),
        ("application/x-www-form-urlencoded", JSON.encode(), 415),
        ("multipart/form-data; boundary=x", JSON.encode(), 415),
        ("application/jsonp", JSON.encode(), 415),
        ("application/json, text/plain", JSON.encode(), 415),
        ("application/json; charset=utf-16", JSON.encode("utf-16"), 415),
        ("application/json; charset=latin-1", JSON.encode("latin-1"), 415),
        ("application/json; charset=none-such", JSON.encode(), 415),
        ("application/json; charset=", JSON.encode(), 415),
        ("application/json", JSON.encode("utf-16"), 400),
        ("application/json", JSON.encode("utf-32"), 400),
        ("application/json", JSON.encode("latin-1"), 400),
        ("application/json", b"", 400),
        (None, b"\xff\xfe", 400),
    ],
)
def test_what_a_body_may_be(tiny_server: Running, content_type: str | None, body: bytes, status: int) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = httpx.post(tiny_server.url + "/v1/completions", content=body, headers=headers, timeout=30)
    assert answer.status_code == status
    if status != 200:
        words = "Content-Type" if status == 415 else "body"
        assert words in answer.json()["error"]["message"]


def test_a_page_must_name_what_it_sends(tiny_server: Running) -> None:
    """A browser asks before it sends JSON to another origin, and sends what has no type without asking."""
    headers = {"Origin": "https://evil.example"}
    assert httpx.post(tiny_server.url + "/v1/completions", content=JSON.encode(), headers=headers).status_code == 415


def tokenized(running: Running, **body: Any) -> str:
    answer = running.post("/tokenize", {**body, "return_token_strs": True}).json()
    assert len(answer["tokens"]) == answer["count"]
    return "".join(answer["token_strs"])


def test_tokenize_is_what_a_chat_would_run(tiny_server: Running) -> None:
    hello = [{"role": "user", "content": "ab"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    end = "<|assistant|>"
    assert tokenized(tiny_server, prompt="ab") == "ab"
    assert tokenized(tiny_server, messages=hello) == f"<|user|>ab{end}"
    assert tokenized(tiny_server, messages=hello, tools=tools) == f"<|user|>ab<tool_call>1{end}"
    assert (
        tokenized(tiny_server, messages=hello, add_generation_prompt=False, continue_final_message=True) == "<|user|>ab"
    )
    assert tokenized(tiny_server, messages=hello, continue_final_message=True) == "<|user|>ab"
    assert tokenized(tiny_server, messages=hello, chat_template_kwargs={"continue_final_message": True}) == "<|user|>ab"
    for body in (
        {"messages": hello, "tools": tools},
        {"messages": hello, "continue_final_message": True},
        {"messages": hello, "add_special_tokens": True},
    ):
        usage = tiny_server.post("/v1/chat/completions", {**body, "max_tokens": 1}).json()["usage"]
        assert tiny_server.post("/tokenize", body).json()["count"] == usage["prompt_tokens"]
    for body in (
        {"messages": hello, "continue_final_message": True, "add_generation_prompt": True},
        {"messages": hello, "chat_template_kwargs": {"tools": tools}},
        {"messages": hello, "chat_template": "x"},
        {"messages": hello, "tools": [{"type": "function"}]},
        {},
    ):
        assert tiny_server.post("/tokenize", body).status_code == 400
