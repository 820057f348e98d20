"""The prefix that a proxy in front has in its paths, whether it takes it away or not."""

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send


def sent_path(scope: Scope) -> str:
    """The path that was sent: the HTTP server has put the prefix before each."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


class RootPath:
    """ASGI middleware: a path that has come with the prefix, and so has it twice, is the one that has it once.

    Args:
        app: what is behind it.
        routes: has the paths. A prefix may be the beginning of one (`/v1`), which is then that one.
    """

    def __init__(self, app: ASGIApp, routes: FastAPI) -> None:
        self.app, self._routes = app, routes

    def _is_ours(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root, sent = scope.get("root_path", ""), sent_path(scope)
        rest = sent.removeprefix(root)
        has_prefix = bool(root) and rest != sent and rest.startswith("/")
        if has_prefix and (self._is_ours(rest) or not self._is_ours(sent)):
            scope = {**scope, "path": sent, "raw_path": sent.encode()}
        await self.app(scope, receive, send)
