"""What Serve's HTTP proxies give requests to: it reads them, and has Serve's router choose a replica by the prompt."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from octavo.executor.ray_cluster import import_ray
from octavo.ray_serve.prefixes import chain, prompt_text
from octavo.ray_serve.replica import WholeRequest
from octavo.server.http_errors import error_body, error_response

PLAIN = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
"""What of ASGI's scope goes to a replica."""
LOST = "the replica died while this request was running. Try again."
COUNTED_WITHIN = 5.0
"""Seconds in which replicas tell their numbers."""


class Door:
    """Takes requests, and passes on what a replica answers.

    Args:
        replicas: Serve's handle of them.
        limit: bytes of the largest request.
    """

    def __init__(self, replicas: Any, limit: int) -> None:
        self.limit = limit
        self.lost: type[Exception] = import_ray().exceptions.RayActorError
        self.broadcast = replicas.broadcast
        self.answer = replicas.options(method_name="answer", stream=True).remote

    async def __call__(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if path == "/metrics":
            return await self._metrics()
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limit:
                return error_response(413, f"the request is larger than the limit of {self.limit} bytes.")
        scope = {name: request.scope[name] for name in PLAIN if name in request.scope}
        scope["client"] = tuple(request.scope.get("client") or ()) or None
        whole = WholeRequest(scope, bytes(body))
        answer = self.answer(await asyncio.to_thread(_chain_of, whole.body) if body else [], whole)
        messages = aiter(answer)
        try:
            first = await anext(messages)
        except self.lost:
            return error_response(503, LOST)
        except BaseException:
            answer.cancel()
            raise
        start = first.pop(0)
        headers = [(bytes(name), bytes(value)) for name, value in start["headers"]]
        is_events = any(value.startswith(b"text/event-stream") for name, value in headers if name == b"content-type")
        response = StreamingResponse(self._bodies(first, messages, answer, is_events), start["status"])
        response.raw_headers = headers
        return response

    async def _bodies(
        self, first: list[Message], messages: Any, answer: Any, is_events: bool
    ) -> AsyncGenerator[bytes, None]:
        """The parts of an answer's body. The replica is told where nobody reads them any more.

        Its end is an event of a stream of events; another body ends as it is, too short.
        """
        done = False
        try:
            yield b"".join(message.get("body", b"") for message in first)
            async for several in messages:
                yield b"".join(message.get("body", b"") for message in several)
            done = True
        except self.lost:
            done = True
            if not is_events:
                raise
            yield b"data: " + msgspec.json.encode(error_body(503, LOST)) + b"\n\n"
        finally:
            if not done:
                answer.cancel()

    async def _metrics(self) -> Response:
        """The numbers of all replicas, each with its own label."""
        texts = await asyncio.to_thread(self.broadcast("metrics").results, timeout_s=COUNTED_WITHIN)
        return Response(merged(texts), media_type="text/plain; version=0.0.4; charset=utf-8")


def _chain_of(body: bytes) -> list[int]:
    """The chain of the prompt in a body. One that cannot be read has none: a replica says what is wrong with it."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        given = msgspec.json.decode(body)
        if isinstance(given, dict):
            return chain(prompt_text(given))
    return []


def merged(texts: list[bytes]) -> bytes:
    """Several expositions for Prometheus as one, whose samples have the label `replica`, a number."""
    families = dict[str, Metric]()
    for replica, text in enumerate(texts):
        for family in text_string_to_metric_families(text.decode()):
            all_of_name = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                all_of_name.add_sample(sample.name, {**sample.labels, "replica": str(replica)}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


class _Families:
    def __init__(self, families: dict[str, Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return list(itertools.chain(self.families.values()))
