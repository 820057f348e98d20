"""A request's body: JSON in UTF-8, whose values every part behind can hold."""

import asyncio
import codecs
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from octavo.errors import InvalidRequestError

MAX_DEPTH = 100
"""Lists and objects within each other. Templates, grammars and encoders go down by recursion."""
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}:]', re.DOTALL)
LARGE = 64 << 10
"""Bytes from which a body is read beside the event loop."""
_DIGITS = bytes(ord("0") if chr(i).isdecimal() else ord("x") for i in range(128)) + b"x" * 128


class BodyError(InvalidRequestError):
    """A value in a body that cannot be. `param` is its field, where that is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message if param is None else f"{param}: {message}")
        self.param = param


class MediaTypeError(InvalidRequestError):
    """A body that is not JSON by its own headers."""


def parse_json(data: bytes, what: str = "the body") -> Any:
    """The value of a JSON text. Of equal keys the last counts, as in Python.

    Raises BodyError for what is not JSON in UTF-8 or nests too deeply, lone surrogates, integers beyond 64 bits and
    numbers that are not finite: with the place of the first.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        value = msgspec.json.decode(data)
    except RecursionError as error:
        raise BodyError(f"{what} is nested deeper than {MAX_DEPTH}.", _deep_field(data)) from error
    except (msgspec.MsgspecError, ValueError):
        value = _lenient(data, what)
        _check(value, what)
        return value
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH or _is_suspect(data):
        _check(value, what)
    return value


def _is_suspect(data: bytes) -> bool:
    """Whether a text may hold an integer beyond 64 bits; most have none, and are not walked through.

    Without a regular expression: over a film in base64 that would hold all threads for a second.
    """
    return b"0" * 19 in data.translate(_DIGITS)


def _lenient(data: bytes, what: str) -> Any:
    """What Python reads, which is more than JSON, so that the place of what is wrong can be told."""
    try:
        return json.loads(data.decode("utf-8"), parse_int=lambda digits: int(digits[:25]))  # enough to tell
    except UnicodeDecodeError as error:
        raise BodyError(f"{what} is not UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise BodyError(f"{what} is nested deeper than {MAX_DEPTH}.", _deep_field(data)) from error
    except json.JSONDecodeError as error:
        raise BodyError(f"{what} is not JSON: {error}") from error


def _deep_field(data: bytes) -> str | None:
    """The key of the whole under which a text, too deep for a parser, goes down too far."""
    depth, text, key = 0, b"", None
    for token in _TOKENS.finditer(data):
        if token[0] in b"[{":
            depth += 1
        elif token[0] in b"]}":
            depth -= 1
        elif token[0] != b":":
            text = token[0]
        elif depth == 1:
            key = text
        if depth > MAX_DEPTH:
            break
    return None if key is None else key[1:-1].decode("ascii", "backslashreplace")[:40]


def _check(value: Any, what: str) -> None:
    """Raises BodyError for the first value in `value` that cannot be. Without recursion."""
    todo: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while todo:
        item, place = todo.pop()
        problem = None
        if isinstance(item, dict):
            if any(_has_surrogate(key) for key in item):
                problem = "a key is not Unicode text (a lone surrogate)"
            todo += [(child, (*place, key)) for key, child in item.items()]
        elif isinstance(item, list):
            # Most lists that are long are tokens: only what can be wrong is looked at again.
            todo += [(child, (*place, i)) for i, child in enumerate(item) if type(child) is not int or _is_large(child)]
        elif isinstance(item, str) and _has_surrogate(item):
            problem = "the text is not Unicode (a lone surrogate)"
        elif isinstance(item, int) and _is_large(item):
            problem = "the integer is beyond 64 bits"
        elif isinstance(item, float) and not math.isfinite(item):
            problem = "the number is not finite"
        if len(place) > MAX_DEPTH:
            problem, place = f"{what} is nested deeper than {MAX_DEPTH}", place[:1]
        if problem is not None:
            shown = ".".join(str(part)[:40] for part in place[:6]).encode("ascii", "backslashreplace").decode()
            raise BodyError(f"{problem}.", shown or None)


def _is_large(value: int) -> bool:
    return not -(2**63) <= value < 2**63


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_media_type(types: list[str], from_page: bool) -> None:
    """Raises MediaTypeError unless a body with these Content-Type headers is JSON in UTF-8.

    Without any it is taken for JSON, unless it comes `from_page` of a browser, which has to ask before it sends JSON
    to another origin, and sends what has no type without asking.
    """
    if not types and not from_page:
        return
    media, _, parameters = (types[0] if types else "").partition(";")
    media = media.strip().lower()
    if len(set(types)) != 1 or not re.fullmatch(r"application/([\w.-]+\+)?json", media):
        given = ", ".join(types)[:100] or "nothing"
        raise MediaTypeError(f"the body must be JSON: send Content-Type: application/json, not {given}.")
    charset = re.search(r"charset\s*=\s*[\"']?([^\"';\s]*)", parameters, re.IGNORECASE)
    try:
        known = charset is None or codecs.lookup(charset[1]).name in ("utf-8", "utf-8-sig", "ascii")
    except (LookupError, ValueError):
        known = False
    if not known:
        raise MediaTypeError("the body must be JSON in UTF-8; the Content-Type names another charset.")


class _ParsedRequest(Request):
    """A request whose body was read here."""

    parsed: Any = None

    async def json(self) -> Any:
        """The value, of which nothing is kept here: an answer may take long, and a body may hold a film."""
        parsed, self.parsed = self.parsed, None
        return parsed


class JSONRoute(APIRoute):
    """A route whose body is read by these rules."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def read(request: Request) -> Response:
            check_media_type(request.headers.getlist("content-type"), "origin" in request.headers)
            kept = [(k, v) for k, v in request.scope["headers"] if k != b"content-type"]
            scope = {**request.scope, "headers": [*kept, (b"content-type", b"application/json")]}
            parsed = _ParsedRequest(scope, request.receive)
            if body := await parsed.body():
                parsed.parsed = await asyncio.to_thread(parse_json, body) if len(body) > LARGE else parse_json(body)
                parsed._body = b"{}"
            return await handler(parsed)

        return read
