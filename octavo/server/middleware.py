"""What may stand around the application: the operator's own middleware, and comments that keep streams alive."""

import asyncio
import contextlib
import importlib
import inspect

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ConfigError

COMMENT = b": keep-alive\n\n"


def add_middleware(app: FastAPI, names: list[str]) -> None:
    """Add middleware by the names of its Python objects. Raises ConfigError for what is none.

    A class is made with the application that it is around, as `app`; a coroutine function is called with a request, and
    with what answers it. The first of the list is the outermost.
    """
    for name in reversed(names):
        found = imported(name)
        if inspect.isclass(found):
            app.add_middleware(found)  # type: ignore[arg-type]
        elif inspect.iscoroutinefunction(found):
            app.middleware("http")(found)
        else:
            raise ConfigError(f"middleware {name!r} is neither a class nor a coroutine function.")


def imported(name: str) -> object:
    """The Python object of a name `package.module.object`. Raises ConfigError where there is none."""
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"middleware {name!r} cannot be imported: {error}. Give package.module.name.") from error


class KeepAlive:
    """ASGI middleware that sends a comment in server-sent events that are silent, so that proxies do not give up.

    Args:
        app: what is behind it.
        interval: seconds of silence.
    """

    def __init__(self, app: ASGIApp, interval: float) -> None:
        self.app, self.interval = app, interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        turn, beats = asyncio.Lock(), list[asyncio.Task[None]]()
        last, is_open = asyncio.get_running_loop().time(), True

        async def beat() -> None:
            nonlocal last
            loop = asyncio.get_running_loop()
            while is_open:
                await asyncio.sleep(max(0.001, last + self.interval - loop.time()))
                async with turn:
                    if is_open and loop.time() >= last + self.interval:
                        last = loop.time()
                        await send({"type": "http.response.body", "body": COMMENT, "more_body": True})

        async def passed_on(message: Message) -> None:
            nonlocal last, is_open
            async with turn:
                last = asyncio.get_running_loop().time()
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    is_open = False
                await send(message)
            if message["type"] == "http.response.start" and _is_stream(message):
                beats.append(asyncio.create_task(beat()))

        try:
            await self.app(scope, receive, passed_on)
        finally:
            is_open = False
            for task in beats:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def _is_stream(message: Message) -> bool:
    headers = dict(message["headers"])
    return bool(headers.get(b"content-type", b"").startswith(b"text/event-stream"))
