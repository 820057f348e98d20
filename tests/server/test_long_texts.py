"""A running stream's tokens keep coming while another request's long text is tokenized, or rendered and tokenized."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.running import Running

MEGABYTE = "many words of text " * 55_000
BETWEEN = 3
"""Tokens that must come between a request and its answer; one that holds the event loop lets none come."""


class Stream:
    """One request after the other, streamed."""

    def __init__(self, running: Running) -> None:
        self.running, self.tokens, self._stop = running, 0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True, "temperature": 0}
        while not self._stop.is_set():
            with httpx.stream("POST", self.running.url + "/v1/completions", json=body, timeout=120) as stream:
                for line in stream.iter_lines():
                    self.tokens += line.startswith("data: {")
                    if self._stop.is_set():
                        return

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)


@pytest.fixture
def stream(tiny_server: Running) -> Iterator[Stream]:
    made = Stream(tiny_server)
    try:
        tiny_server.until(lambda: made.tokens > 5)
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"prompt": MEGABYTE}, 200),
        ("/v1/completions", {"prompt": MEGABYTE, "max_tokens": 2}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": MEGABYTE}], "max_tokens": 2}, 400),
    ],
    ids=["tokenized", "completed", "chatted"],
)
def test_tokens_keep_coming(tiny_server: Running, stream: Stream, path: str, body: dict[str, Any], status: int) -> None:
    before = stream.tokens
    assert tiny_server.post(path, body).status_code == status
    assert stream.tokens - before >= BETWEEN
