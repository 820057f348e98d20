"""/invocations, where SageMaker sends every request: it goes to the endpoint that its body is for."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import InvalidRequestError
from octavo.server.body import parse_json
from octavo.server.http_errors import error_response
from octavo.server.service import Service

PATH = "/invocations"


def endpoint_of(body: Any, task: str) -> str:
    """Which endpoint a body is for, by what it has and what the engine does. Raises InvalidRequestError for none."""
    keys = body.keys() if isinstance(body, dict) else ()
    if task == "generate":
        found = next((path for key, path in _GENERATE if key in keys), None)
    elif any(key in keys for key in ("query", "documents")):
        found = "/rerank"
    elif any(key in keys for key in _SCORED):
        found = "/score"
    elif "input" in keys or "messages" in keys:
        found = {"embedding": "/v1/embeddings", "classify": "/classify"}.get(task, "/pooling")
    else:
        found = None
    if found is None:
        raise InvalidRequestError(
            f"the body is for no endpoint of a server for task {task!r}: give messages, prompt, input, or what "
            "/score and /rerank take."
        )
    return found


_GENERATE = (("messages", "/v1/chat/completions"), ("prompt", "/v1/completions"))
_SCORED = ("text_1", "text_2", "data_1", "data_2", "queries")


class Invocations:
    """ASGI middleware: a request to /invocations becomes one to its endpoint, streams as they are.

    Args:
        app: has the endpoints, behind the limit of bodies.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope["path"]).removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        if path != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        messages, more = list[Message](), True
        while more:
            message = await receive()
            messages.append(message)
            more = message["type"] == "http.request" and bool(message.get("more_body"))
        read = iter(messages)

        async def again() -> Message:
            return next(read, None) or await receive()

        if messages[-1]["type"] == "http.request":
            try:
                body = parse_json(b"".join(message.get("body", b"") for message in messages))
                path = endpoint_of(body, self.service.ready.info.task)
            except InvalidRequestError as error:
                await error_response(400, str(error))(scope, receive, send)
                return
        root = scope.get("root_path", "")
        await self.app({**scope, "path": root + path, "raw_path": (root + path).encode()}, again, send)
