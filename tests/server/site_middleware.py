"""Middleware as an operator may bring it."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Stamp:
    """Adds a header to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)

        await self.app(scope, receive, stamped)


async def also(request: Any, call_next: Any) -> Any:
    """Adds another."""
    response = await call_next(request)
    response.headers["x-also"] = "function"
    return response


nothing = 5
