"""/v1/messages and /v1/messages/count_tokens: Anthropic's API."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.client.output_processor import Chunk
from octavo.server.body import JSONRoute
from octavo.server.chat_completions import Chat
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.http_errors import ANTHROPIC, as_event_body
from octavo.server.inner_chat import answer_pieces, count_tokens
from octavo.server.message_events import ContentBlocks
from octavo.server.message_request import CountMessagesRequest, MessagesRequest
from octavo.server.served_models import ServedModel
from octavo.server.service import Service

Value = dict[str, Any]


class MessageWork:
    """One request of /v1/messages."""

    def __init__(self, service: Service, request: MessagesRequest, model: ServedModel) -> None:
        self.request, self.model = request, model
        self.chat = Chat(service, request.chat(), model)
        self.chat.id = self.id = service.new_id("msg").replace("-", "_")

    def _blocks(self, is_told: bool) -> ContentBlocks:
        return ContentBlocks(self.chat.readers.call_id, is_told, self.request.shows_thoughts)

    def _message(self, blocks: list[Value], ending: Value) -> Value:
        usage = self._usage()
        named = {"id": self.id, "type": "message", "role": "assistant", "model": self.model.name}
        return {**named, "content": blocks, **ending, "usage": usage}

    def _usage(self) -> Value:
        """`input_tokens` are those that the prefix cache did not have."""
        usage, cached = self.chat.run.usage(), self.chat.run.num_cached
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }

    @staticmethod
    def _ending(chunk: Chunk, num_calls: int) -> Value:
        """Why the answer has ended."""
        if chunk.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if num_calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if isinstance(chunk.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": chunk.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    async def whole(self) -> Value:
        """The message, when all is there."""
        blocks, ending = self._blocks(is_told=False), dict[str, Any]()
        async with contextlib.aclosing(answer_pieces(self.chat, in_parts=False)) as pieces:
            async for events, chunk in pieces:
                blocks.take(events)
                ending = self._ending(chunk, blocks.num_calls)
        blocks.close()
        return self._message(blocks.blocks, ending)

    async def events(self) -> AsyncGenerator[Value, None]:
        """The events of a stream. What fails behind the first one is the last one's matter."""
        blocks, ending, has_begun = self._blocks(is_told=True), dict[str, Any](), False
        try:
            async with contextlib.aclosing(answer_pieces(self.chat)) as pieces:
                async for events, chunk in pieces:
                    if not has_begun:
                        has_begun = True
                        beginning = self._message([], {"stop_reason": None, "stop_sequence": None})
                        yield {"type": "message_start", "message": beginning}
                    for event in blocks.take(events):
                        yield event
                    ending = self._ending(chunk, blocks.num_calls)
        except Exception as error:
            if not has_begun:
                raise
            yield as_event_body(error, ANTHROPIC)
            return
        for event in blocks.close():
            yield event
        yield {"type": "message_delta", "delta": ending, "usage": self._usage()}
        yield {"type": "message_stop"}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post(ANTHROPIC, summary="Answer by Anthropic's API")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        work = MessageWork(service, body, service.accept(body, "generate"))
        await work.chat.prepare()
        if body.stream:
            return await event_response(request, work.events(), is_named=True)
        return json_response(await while_connected(request, work.whole()))

    @routes.post(f"{ANTHROPIC}/count_tokens", summary="How many tokens a message's input has")
    async def count(body: CountMessagesRequest) -> Response:
        model = service.accept(body, "generate")
        return json_response({"input_tokens": await count_tokens(service, body.chat(), model)})

    return routes
