"""A server whose pages are the real ones, and whose answers are what the test says."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from octavo.engine.messages import Ready
from octavo.loading.model_info import ModelInfo
from octavo.server.app import create_app
from tests.server.scripted import ScriptedClient, byte_tokenizer, service

BREAK = "break"
"""The connection ends without a word."""


def words(text: str) -> list[dict[str, Any]]:
    """A text in pieces, as deltas."""
    return [{"content": piece} for piece in text.replace(" ", " \0").split("\0")]


@dataclass
class Script:
    """What the server answers next, and what it was asked."""

    url: str = ""
    answers: deque[Any] = field(default_factory=deque)
    asked: list[dict[str, Any]] = field(default_factory=list)
    models: list[str] = field(default_factory=lambda: ["owner/scripted"])
    metrics: str = ""
    metrics_status: int = 200

    def say(self, *deltas: Any, finish: str | None = "stop", usage: tuple[int, int] | None = (10, 5)) -> None:
        """Answer by these: deltas, texts, gates (threading.Event) that are waited for, or BREAK.

        Without a finish the stream ends in its middle.
        """
        steps: list[Any] = []
        for delta in deltas:
            steps += words(delta) if isinstance(delta, str) and delta != BREAK else [delta]
        self.answers.append((steps, finish, usage))

    def refuse(self, status: int, body: str, kind: str = "application/json") -> None:
        self.answers.append(Response(body, status, media_type=kind))

    def error(self, status: int, message: str) -> None:
        self.refuse(status, json.dumps({"error": {"message": message, "code": status}}))

    def reset(self) -> None:
        self.answers.clear()
        self.asked.clear()
        self.models, self.metrics, self.metrics_status = ["owner/scripted"], "", 200

    async def chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        answer = self.answers.popleft() if self.answers else (words("Nothing is scripted."), "stop", None)
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(self._stream(*answer), media_type="text/event-stream")

    async def _stream(
        self, steps: list[Any], finish: str | None, usage: tuple[int, int] | None
    ) -> AsyncGenerator[str, None]:
        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

        yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for step in steps:
            if isinstance(step, threading.Event):
                while not step.is_set():
                    await asyncio.sleep(0.01)
            elif step == BREAK:
                return
            elif "error" in step:
                yield f"data: {json.dumps(step)}\n\n"
                return
            else:
                yield event([{"index": 0, "delta": step, "finish_reason": None}])
        if finish is None:
            return
        yield event([{"index": 0, "delta": {}, "finish_reason": finish}])
        if usage is not None:
            yield event([], usage={"prompt_tokens": usage[0], "completion_tokens": usage[1]})
        yield "data: [DONE]\n\n"

    async def list_models(self, request: Request) -> Response:
        card = {"object": "model", "input_modalities": ["text"], "max_model_len": 1000}
        return JSONResponse({"data": [{"id": name, **card} for name in self.models]})

    async def numbers(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics, self.metrics_status)


@contextmanager
def scripted_page(**options: Any) -> Iterator[Script]:
    """A server in a thread of this process."""
    script = Script()
    client = ScriptedClient([[0]], "stop", ())
    recommended = {"temperature": 0.6, "top_p": 0.95}
    info = ModelInfo(task="generate", vocab_size=320, max_model_len=1000, generation_config=recommended)
    client.ready = Ready(info, 8)
    made = service(byte_tokenizer("</s>"), client, **options)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", script.chat, methods=["POST"]),
            Route("/v1/models", script.list_models),
            Route("/metrics", script.numbers),
            Mount("/", create_app(made)),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    script.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
