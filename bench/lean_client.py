"""An HTTP client that costs next to nothing, so that what is measured is the server: it looks for where answers end."""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

END = b"\r\n0\r\n\r\n"
"""What a chunked answer ends with."""


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    """A POST of a connection that is kept."""
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


def connect(url: str) -> socket.socket:
    """A connection to a server, for answers in small pieces."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def stream_stamps(connection: socket.socket, request: bytes) -> list[float]:
    """When each event of a streamed answer came, in seconds from the request; the last is its end's."""
    begin, tail, stamps = time.perf_counter(), b"", list[float]()
    connection.sendall(request)
    while not tail.endswith(END):
        data = connection.recv(1 << 16)
        stamp = time.perf_counter() - begin
        assert data, "the server has closed the connection"
        assert tail or data.startswith(b"HTTP/1.1 200"), data[:300]
        stamps += [stamp] * data.count(b"data: ")
        tail = tail[-len(END) :] + data
    return stamps


def run_all(url: str, requests: Sequence[bytes], concurrency: int) -> tuple[float, int]:
    """Seconds for all requests, streamed, so many at a time, and the events that came of them.

    Raises AssertionError for an answer that is no stream.
    """
    left, done, selector, events = list(requests)[::-1], 0, selectors.DefaultSelector(), 0
    tails = dict[socket.socket, bytes]()
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for _ in range(min(concurrency, len(left))):
            connection = stack.enter_context(connect(url))
            connection.sendall(left.pop())
            selector.register(connection, selectors.EVENT_READ)
        while done < len(requests):
            for key, _ in selector.select():
                lane: Any = key.fileobj
                data, tail = lane.recv(1 << 16), tails.get(lane, b"")
                assert data, "the server has closed a connection"
                assert tail or data.startswith(b"HTTP/1.1 200"), data[:300]
                tails[lane], events = (tail + data)[-len(END) :], events + data.count(b"data: {")
                if tails[lane] == END:
                    done, tails[lane] = done + 1, b""
                    if left:
                        lane.sendall(left.pop())
                    else:
                        selector.unregister(lane)
        return time.perf_counter() - begin, events
