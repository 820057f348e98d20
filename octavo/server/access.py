"""What every HTTP request passes: keys, sizes, and the request log."""

import hmac
import re
import time
import uuid

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.http_errors import CLIENT_GONE, error_response
from octavo.server.http_options import keys_of
from octavo.server.request_log import Fields, begin_request_log, write_request_log
from octavo.server.root_path import sent_path
from octavo.server.server_options import ServerOptions
from octavo.server.tracing import note_parent

OPEN = frozenset(["/health", "/ping", "/version", "/metrics", "/", "/stats", "/openapi.json"])
"""Paths that need no key: none of them runs the model or shows prompts."""
PAGE_FILES = "/static/"
"""What the pages are made of needs none either."""
REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""Clients' request ids that are taken over; others could rewrite what a terminal shows of the log."""
FILES = "/v1/files"
QUIET = frozenset(["/health", "/ping", "/metrics"])
"""Paths that are asked all the time, and get no line in the log."""


class AccessMiddleware:
    """ASGI middleware around the whole app.

    Args:
        app: what is behind it.
        options: keys and sizes.
        has_media: whether requests may carry pictures, films or sounds.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, has_media: bool = False) -> None:
        self.app, self.limit = app, options.body_bytes(has_media)
        self.upload_limit = options.upload_bytes()
        self.keys = [key.encode() for key in keys_of(options.api_key)]
        self.quiet = QUIET | options.quiet_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        named = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = named if REQUEST_ID.fullmatch(named) else uuid.uuid4().hex
        limit = self._limit(scope)
        start, status, too_large, refused, size = time.monotonic(), 0, False, False, 0
        fields = begin_request_log()
        note_parent(headers)

        async def counted() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        async def refuse(status: int) -> None:
            nonlocal refused
            refused = True
            await self._refusal(status, scope["path"], limit)(scope, receive, answer)

        async def passed_on(message: Message) -> None:
            if status and not refused:  # in the midst of an answer, as most are
                await send(message)
                return
            if too_large and not status:
                await refuse(413)
            if not refused:
                await answer(message)

        try:
            if not self._allowed(scope, headers):
                await refuse(401)
            elif _number(headers.get(b"content-length", b"")) > limit:
                await refuse(413)
            else:
                # HEAD is GET whose body the HTTP server leaves out.
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                await self.app({**scope, "method": method}, counted, passed_on)
        except Exception:
            if not status:
                raise
            # It is answered and logged: the connection may go on.
        finally:
            if scope["path"] not in self.quiet and not scope["path"].startswith(PAGE_FILES):
                seconds = time.monotonic() - start
                self._write_log(scope, request_id, status, seconds, fields)

    def _allowed(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        path = sent_path(scope).removeprefix(scope.get("root_path", ""))  # which may have come with the prefix
        if not self.keys or path in OPEN or path.startswith(PAGE_FILES) or scope["method"] == "OPTIONS":
            return True
        # OpenAI's clients send one header, Anthropic's the other.
        bearer, named = headers.get(b"authorization", b"").removeprefix(b"Bearer "), headers.get(b"x-api-key", b"")
        # All are compared, each in constant time: how long it takes tells nothing of a key.
        matches = [hmac.compare_digest(given.strip(), key) for given in (bearer, named) for key in self.keys]
        return any(matches)

    def _limit(self, scope: Scope) -> int:
        """The largest request in bytes: of files it is another."""
        path = sent_path(scope).removeprefix(scope.get("root_path", ""))
        is_upload = path == FILES and scope["method"] == "POST"
        return self.limit if self.upload_limit is None or not is_upload else self.upload_limit

    @staticmethod
    def _refusal(status: int, path: str, limit: int) -> Response:
        if status == 401:
            response = error_response(401, "a valid key is needed: Authorization: Bearer KEY.", path=path)
            response.headers["WWW-Authenticate"] = "Bearer"
        else:
            message = f"the request is larger than the limit of {limit} bytes."
            response = error_response(413, message, path=path)
            response.headers["Connection"] = "close"
        return response

    @staticmethod
    def _write_log(scope: Scope, request_id: str, status: int, seconds: float, fields: Fields) -> None:
        line = {
            "id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": "client gone" if status in (0, CLIENT_GONE) else status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
            **fields,
        }
        write_request_log(line)


def _number(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 20 else 0
