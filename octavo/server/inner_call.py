"""A request to the application from within, as if a client had sent it."""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class InnerAnswer:
    """What the application answers."""

    status: int
    body: bytes


async def post_json(app: ASGIApp, path: str, body: bytes) -> InnerAnswer:
    """The answer to a JSON body. It ends with the task that waits for it."""
    status, parts, is_sent = 500, list[bytes](), False
    host = (b"host", b"localhost")
    headers = [host, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": ("localhost", 80),
    }

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()  # the client does not go
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        if not parts:
            raise
        # It is answered and logged.
    return InnerAnswer(status, b"".join(parts))
