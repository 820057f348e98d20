"""Answers that end with their client: as one body, or as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from octavo.server.http_errors import ClientGoneError, as_event

T = TypeVar("T")

to_json = msgspec.json.Encoder().encode


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. If the client goes, the work is cancelled. Raises ClientGoneError then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watch):
            each.cancel()
            with contextlib.suppress(BaseException):
                await each


def json_response(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _line(event: Any) -> bytes:
    return b"data: " + to_json(event) + b"\n\n"


def _named(event: Any) -> bytes:
    name: str = event["type"]
    return b"event: " + name.encode() + b"\n" + _line(event)


async def event_response(request: Request, events: AsyncGenerator[Any, None], is_named: bool = False) -> Response:
    """Server-sent events, one for each value. What fails before the first one is an error with a status of its own.

    The events end with their client, also one that goes before the first. Raises ClientGoneError then.

    Args:
        is_named: each has its type as its name, and tells itself which is the last, errors too.
    """
    line = _named if is_named else _line

    async def begin() -> Any:
        return await anext(events, None)

    try:
        first = await while_connected(request, begin())
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(events):
            try:
                if first is not None:
                    yield line(first)
                async for event in events:
                    yield line(event)
            except Exception as error:
                yield b"data: " + as_event(error).encode() + b"\n\n"
            if not is_named:
                yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)
