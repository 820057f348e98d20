"""Errors in OpenAI's shape, with the status that says whose fault it is."""

import json
import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.server.admission import OverloadedError
from octavo.server.body import MediaTypeError
from octavo.server.request_errors import NotFoundError
from octavo.server.served_models import ModelUnknownError
from octavo.server.service import RequestTimeoutError

MESSAGE_MAX = 1000
"""Characters of an error's message: it may quote what the client has sent."""

log = logging.getLogger("octavo")

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable",
    504: "timeout_error",
}

ANTHROPIC = "/v1/messages"
"""Where Anthropic's API is, and errors are in its shape."""
ANTHROPIC_KINDS = {413: "request_too_large", 500: "api_error", 503: "overloaded_error", 504: "timeout_error"}
"""Its names, where they are not OpenAI's."""

UNEXPECTED = "internal server error; the server's log has the details."
CLIENT_GONE = 499
"""nginx's number for a client that did not wait."""


class ClientGoneError(Exception):
    """The client has closed the connection; nobody reads an answer."""


def error_body(status: int, message: str, param: str | None = None, path: str = "") -> dict[str, Any]:
    """An error in the shape that the clients of a path expect: OpenAI's, or Anthropic's."""
    kind = KINDS.get(status, "invalid_request_error")
    message = message if len(message) <= MESSAGE_MAX else message[:MESSAGE_MAX] + "..."
    message = message.encode("utf-8", "backslashreplace").decode()
    if ANTHROPIC in path:
        return {"type": "error", "error": {"type": ANTHROPIC_KINDS.get(status, kind), "message": message}}
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def error_response(status: int, message: str, param: str | None = None, path: str = "") -> Response:
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    body = msgspec.json.encode(error_body(status, message, param, path))
    return Response(body, status, headers, media_type="application/json")


def status_of(error: Exception) -> int:
    if isinstance(error, MediaTypeError):
        return 415
    if isinstance(error, InvalidRequestError):
        return 400
    if isinstance(error, OverloadedError):
        return 429
    if isinstance(error, (ModelUnknownError, NotFoundError)):
        return 404
    if isinstance(error, EngineDeadError):
        return 503
    return 504 if isinstance(error, RequestTimeoutError) else 500


def install(app: FastAPI) -> None:
    """Have the app answer errors like this."""

    @app.exception_handler(OctavoError)
    async def octavo_error(request: Request, error: OctavoError) -> Response:
        return error_response(status_of(error), str(error), getattr(error, "param", None), request.url.path)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)  # which nobody reads

    @app.exception_handler(ExceptionGroup)
    async def several(request: Request, group: ExceptionGroup[Any]) -> Response:
        first = group.exceptions[0]
        if isinstance(first, OctavoError):
            return error_response(status_of(first), str(first), path=request.url.path)
        raise group

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part)[:40] for part in first["loc"][1:7])
        message = f"{place or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
        return error_response(400, message, place or None, request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = error_response(error.status_code, str(error.detail), path=request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.exception("an unexpected error")
        return error_response(500, UNEXPECTED, path=request.url.path)


def as_event(error: Exception) -> str:
    """For the middle of a stream, whose status is sent already."""
    return json.dumps(as_event_body(error))


def as_event_body(error: Exception, path: str = "") -> dict[str, Any]:
    """The same as a value."""
    if isinstance(error, OctavoError):
        return error_body(status_of(error), str(error), path=path)
    log.error("an unexpected error", exc_info=error)
    return error_body(500, UNEXPECTED, path=path)
