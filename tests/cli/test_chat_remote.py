"""Conversations with servers: Octavo's own, and what others send."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.cli.chat.chat_model import AnswerEnd
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.remote_chat import RemoteChat, base_url
from octavo.errors import ConfigError, InvalidRequestError, ModelNotFoundError, OctavoError
from octavo.server.answer_events import CallArguments, CallBegin, CallEnd, Text, Thought
from tests.server.conftest import write_tiny
from tests.server.running import Running, server

MODELS = {"data": [{"id": "first", "max_model_len": 4096}, {"id": "second"}]}


def choice(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4}}
WHOLE = [choice(role="assistant", content=""), choice(content="Hel"), choice(content="lo"), choice("stop"), USAGE]


class Server:
    """What a server would answer.

    Args:
        events: of its stream.
    """

    def __init__(self, events: list[Any] = WHOLE, status: int = 200, done: bool = True) -> None:
        self.events, self.status, self.done = events, status, done
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json=MODELS)
        if self.status != 200:
            return httpx.Response(self.status, json=self.events[0])
        lines = [e if isinstance(e, str) else f"data: {json.dumps(e)}" for e in self.events]
        text = "\n\n".join([": ping", *lines, *(["data: [DONE]"] if self.done else [])]) + "\n\n"
        return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.requests[-1].content))


def chat_with(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> RemoteChat:
    return RemoteChat("http://there:8000", client=httpx.Client(transport=httpx.MockTransport(answer)), **options)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:8000", "http://a:8000/v1"),
        ("a:8000/", "http://a:8000/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("http://a/prefix/v1/chat/completions", "http://a/prefix/v1"),
    ],
)
def test_urls(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize("url", ["", "ftp://a", "http://", "http://a:port", "file:///etc/passwd"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        base_url(url)


def test_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    there = Server()
    talk = Conversation(chat_with(there), {"temperature": 0.5}, "Be brief.")
    talk.thinks = False
    *pieces, end = talk.say("Hi")
    assert pieces == [Text("Hel"), Text("lo")]
    assert isinstance(end, AnswerEnd)
    assert (end.reason, end.output_tokens, end.used, talk.model.context_length) == ("stop", 4, 15, 4096)
    assert there.body == {
        "model": "first",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
    }
    assert there.requests[-1].headers["authorization"] == "Bearer secret"
    talk.load_model("second")
    list(talk.say("again"))
    assert there.body["model"] == "second"
    assert "temperature" in there.body


def test_thoughts_and_calls() -> None:
    calls = [
        choice(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
        choice(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
        choice(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": "[]"}}]),
        choice("tool_calls"),
    ]
    thought = [choice(reasoning="a", reasoning_content="a"), choice(reasoning_content="b")]
    *pieces, _ = chat_with(Server([*thought, choice(content="c"), *calls])).answer([], {}, None)
    assert pieces == [
        *(Thought("a"), Thought("b"), Text("c")),
        *(CallBegin("f"), CallArguments("{}"), CallEnd(), CallBegin("g"), CallArguments("[]"), CallEnd()),
    ]
    raw = [choice(content=c) for c in ("<thi", "nk>hm</th", "ink>yes")]
    *pieces, _ = chat_with(Server([*raw, choice("stop")])).answer([], {}, None)
    assert pieces == [Thought("hm"), Text("yes")]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (Server([{"error": {"message": "too long"}}], status=400), "answers 400: too long"),
        (Server([{"detail": "nope"}], status=401), "401: nope Give the server's key with --api-key"),
        (Server([{"error": {"message": "died"}}]), "died"),
        (Server(["data: {oops"]), "no JSON"),
        (Server([{"choices": [1]}]), "no chunk of an answer"),
        (Server([choice(content="x")], done=False), "broke the answer off"),
        (Server([["list"]]), "broke the answer off"),
    ],
)
def test_what_goes_wrong_is_said(there: Server, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        list(chat_with(there).answer([{"role": "user", "content": "x"}], {}, None))


def test_servers_that_are_none() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(OctavoError, match=r"no server answers at http://there:8000/v1 \(Connection refused\)"):
        chat_with(refuse)
    for text in ("<html>", "[]", '{"data": 5}', '{"data": [{}]}'):
        with pytest.raises(OctavoError, match="lists no models"):
            chat_with(lambda request, text=text: httpx.Response(200, text=text))  # type: ignore[misc]
    with pytest.raises(ModelNotFoundError, match=r"no model 'frist'. Did you mean first\?"):
        chat_with(Server(), model="frist")


def test_files_are_sent(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "b.mp3").write_bytes(b"sound")
    there = Server()
    talk = Conversation(chat_with(there))
    talk.attach("image", str(tmp_path / "a.png"))
    talk.attach("audio", str(tmp_path / "b.mp3"))
    with pytest.raises(InvalidRequestError, match="nosuch"):
        talk.attach("video", str(tmp_path / "nosuch.mp4"))
    list(talk.say("What?"))
    picture, sound, text = there.body["messages"][0]["content"]
    assert picture["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(b"picture").decode()
    assert sound["input_audio"] == {"data": base64.b64encode(b"sound").decode(), "format": "mp3"}
    assert text == {"type": "text", "text": "What?"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_tiny(tmp_path_factory.mktemp("remote") / "tiny")
    with server(str(model), "--kv-cache-memory", "16MiB", "--served-model-name", "tiny", "--api-key", "k") as found:
        yield found


def chat(running: Running, *options: str, stdin: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo", "chat", "--url", running.url, *options]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_talks_to_octavos_own_server(running: Running) -> None:
    options = ("--api-key", "k", "--temperature", "0", "--max-tokens", "5")
    done = chat(running, *options, stdin="hello\n/retry\n/show\n")
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\nmodel         tiny\n")
    assert "of 2,048" in rest
    assert "octavo: [cut after 5 tokens" in done.stderr
    assert first
    unknown = chat(running, *options, "--model", "tinny", stdin="hello\n")
    assert unknown.returncode == 1
    assert "Did you mean tiny?" in unknown.stderr
    assert "--api-key" in chat(running, stdin="hello\n").stderr
    assert "--max-model-len has no effect with --url" in chat(running, "--max-model-len", "5", stdin="").stderr
