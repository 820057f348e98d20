"""Answers that end with their client: as one body, or as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.http_errors import ClientGoneError, as_event

T = TypeVar("T")

to_json = msgspec.json.Encoder().encode


class ClientWatch:
    """Notes when a request's client goes, and ends what runs for it. `close` it.

    One for all of a request, and no task for what is ended: to make such tasks anew between an answer's first token
    and its head would take longer than all else that the token passes here.
    """

    def __init__(self, request: Request) -> None:
        self._running: asyncio.Task[Any] | None = None
        self._is_gone = False
        self._watch = asyncio.ensure_future(self._run(request.receive))

    async def _run(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        if self._running is not None:
            self._running.cancel()

    @contextlib.contextmanager
    def ends(self) -> Iterator[None]:
        """What this task does within it is cancelled when the client goes. Raises ClientGoneError then."""
        if self._is_gone:
            raise ClientGoneError
        task = self._running = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            yield
        except asyncio.CancelledError:
            if self._is_gone and task.uncancel() <= cancelling:
                raise ClientGoneError from None
            raise  # somebody else cancels it
        finally:
            self._running = None

    def close(self) -> None:
        """Watch no more."""
        self._watch.cancel()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. If the client goes, the work is cancelled. Raises ClientGoneError then."""
    watch = ClientWatch(request)
    try:
        with watch.ends():
            return await work
    finally:
        watch.close()


def json_response(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


def _line(event: Any) -> bytes:
    return b"data: " + to_json(event) + b"\n\n"


def _named(event: Any) -> bytes:
    name: str = event["type"]
    return b"event: " + name.encode() + b"\n" + _line(event)


class EventResponse(Response):
    """Server-sent events, the first of which is there already.

    Args:
        watch: its client's; closed at the end.
        first: the first event; None where there is none.
        events: the others; closed at the end.
        is_named: as in `event_response`.
    """

    media_type = "text/event-stream"

    def __init__(self, watch: ClientWatch, first: Any, events: AsyncGenerator[Any, None], is_named: bool) -> None:
        self.status_code, self.background = 200, None
        self._watch, self._first, self._events, self._is_named = watch, first, events, is_named
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._watch.ends():
                await self._send(send)
        except ClientGoneError:
            pass
        finally:
            self._watch.close()
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        line = _named if self._is_named else _line
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if self._first is not None:
                await send({"type": "http.response.body", "body": line(self._first), "more_body": True})
            async for event in self._events:
                await send({"type": "http.response.body", "body": line(event), "more_body": True})
        except Exception as error:
            body = b"data: " + as_event(error).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if not self._is_named:
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def event_response(request: Request, events: AsyncGenerator[Any, None], is_named: bool = False) -> Response:
    """Server-sent events, one for each value. What fails before the first one is an error with a status of its own.

    The events end with their client, also one that goes before the first. Raises ClientGoneError then.

    Args:
        is_named: each has its type as its name, and tells itself which is the last, errors too.
    """
    watch = ClientWatch(request)
    try:
        with watch.ends():
            first = await anext(events, None)
    except BaseException:
        watch.close()
        await events.aclose()
        raise
    return EventResponse(watch, first, events, is_named)
