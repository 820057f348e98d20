"""What every HTTP request passes: keys, sizes, and a line in the log."""

import hmac
import json
import logging
import os
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.errors import error_response
from octavo.server.options import ServerOptions
from octavo.server.service import take_notes

log = logging.getLogger("octavo.requests")

OPEN = frozenset(["/health", "/ping", "/version", "/metrics", "/", "/stats", "/openapi.json"])
"""Paths that need no key: nothing of them runs the model or tells of its prompts."""
QUIET = frozenset(["/health", "/ping", "/metrics"])
"""Paths that are asked all the time, and get no line in the log."""


class Gate:
    """ASGI middleware around the whole app.

    Args:
        app: what is behind it.
        options: keys and sizes.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app, self.limit = app, options.body_bytes
        named = os.environ.get("OCTAVO_API_KEY", "")
        self.keys = [key.encode() for key in [*options.api_key, *named.split(",")] if key]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")[:128] or uuid.uuid4().hex
        start, status, too_large, size = time.monotonic(), 0, False, 0
        notes = take_notes()

        async def counted() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if too_large:
                    status = 413
                    await self._refuse(scope, receive, send, 413)
                    return
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
            if status != 413 or not too_large:
                await send(message)

        try:
            if not self._allowed(scope, headers):
                status = 401
                await self._refuse(scope, receive, send, 401)
            elif int(headers.get(b"content-length", b"0") or 0) > self.limit:
                status = 413
                await self._refuse(scope, receive, send, 413)
            else:
                await self.app(scope, counted, answer)
        finally:
            if scope["path"] not in QUIET:
                seconds = time.monotonic() - start
                self._write(scope, request_id, status, seconds, notes)

    def _allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if not self.keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return True
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
        # All are compared, each in constant time: how long it takes tells nothing of a key.
        matches = [hmac.compare_digest(given, key) for key in self.keys]
        return any(matches)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int) -> None:
        if status == 401:
            response = error_response(401, "a valid key is needed: Authorization: Bearer KEY.")
            response.headers["WWW-Authenticate"] = "Bearer"
        else:
            response = error_response(413, f"the request is larger than the {self.limit} bytes that are taken.")
            response.headers["Connection"] = "close"
        await response(scope, receive, send)

    @staticmethod
    def _write(scope: Scope, request_id: str, status: int, seconds: float, notes: dict[str, Any]) -> None:
        line = {
            "id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status or "client gone",
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
            **notes,
        }
        log.info(json.dumps(line, ensure_ascii=False))
