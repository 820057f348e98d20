"""A client that goes, whenever and from wherever, ends its request and leaves no trace of a fault in the log."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Running, server

LONG = {"max_tokens": 1500, "ignore_eos": True, "temperature": 1}
CHAT = {"messages": [{"role": "user", "content": "x"}], **LONG}
GENERATE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["x", "y", "z"], "n": 4, **LONG},
    "/v1/chat/completions": {**CHAT, "n": 4},
}
TEXTS = [f"{i} " + "y" * 1200 for i in range(300)]
"""Which differ from their beginnings on: what the prefix cache has is done before anybody sees that it runs."""
EMBED: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": [f"0{text}" for text in TEXTS]},
    "/pooling": {"input": [f"1{text}" for text in TEXTS]},
    "/score": {"text_1": "x" * 1200, "text_2": [f"2{text}" for text in TEXTS]},
    "/rerank": {"query": "x" * 1200, "documents": [f"3{text}" for text in TEXTS]},
}


def send(url: str, path: str, body: dict[str, Any], share: float = 1.0) -> socket.socket:
    """A connection with a request, or the first part of one."""
    host, port = url.removeprefix("http://").split(":")
    connection, data = socket.create_connection((host, int(port))), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data[: int(len(data) * share)])
    return connection


def reset(connection: socket.socket) -> None:
    """Go without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def check(running: Running, requests: int, first: int) -> None:
    """All requests are told as gone, and nothing else is in the log."""

    def told() -> list[str]:
        return [line for line in running.log[first:] if '"POST"' in line]

    running.until(lambda: len(told()) == requests)
    running.until(lambda: running.metric("num_requests_running") == 0 == running.metric("num_requests_waiting"))
    assert all('"client gone"' in line or '"status": 200' in line for line in told())
    assert [line for line in running.log[first:] if not line.startswith("{")] == []
    assert running.get("/health").status_code == 200


def go(running: Running, bodies: dict[str, dict[str, Any]], *, streams: bool) -> int:
    """Clients that go within their body, at once behind it, while it is computed, and in the midst of the answer."""
    count = 0
    for path, body in bodies.items():
        for share in (0.5, 1.0):
            send(running.url, path, body, share).close()
            reset(send(running.url, path, body, share))
            count += 2
        connection = send(running.url, path, body)
        running.until(lambda: running.metric("num_requests_running") > 0)
        reset(connection)
        count += 1
        if streams:
            connection = send(running.url, path, {**body, "stream": True})
            assert b"200 OK" in connection.recv(300)
            reset(connection)
            count += 1
    return count


@pytest.mark.parametrize("task", ["generate", "embedding"])
def test_it_leaves_no_trace(tiny_model: Path, task: str) -> None:
    is_generating = task == "generate"
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", "--task", task) as running:
        first = len(running.log)
        count = go(running, GENERATE if is_generating else EMBED, streams=is_generating)
        check(running, count, first)
