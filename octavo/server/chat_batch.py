"""/v1/chat/completions/batch: several conversations in one request, and a choice for each."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from octavo.errors import InvalidRequestError
from octavo.server.body import BodyError, JSONRoute
from octavo.server.chat_completions import Chat
from octavo.server.event_stream import json_response, while_connected
from octavo.server.protocol import ChatRequest, Many
from octavo.server.served_models import ServedModel
from octavo.server.service import Service


class BatchChatRequest(ChatRequest):
    """/v1/chat/completions/batch: a chat's values, with a list of conversations."""

    messages: Many[Many[dict[str, Any]]] = Field(min_length=1)  # type: ignore[assignment]


class ChatBatch:
    """One request of it: a chat for each conversation."""

    def __init__(self, service: Service, request: BatchChatRequest, model: ServedModel) -> None:
        self.service = service
        if request.stream:
            raise BodyError("several conversations have no stream; leave it out.", "stream")
        if getattr(request, "n", None) not in (None, 1):
            raise BodyError("each conversation has one choice; leave it out.", "n")
        most = service.options.max_request_sequences
        if len(request.messages) > most:
            raise BodyError(
                f"there are {len(request.messages)} conversations, and one request may have {most}.", "messages"
            )
        conversations: list[Any] = request.messages
        self.chats = [Chat(service, request.model_copy(update={"messages": one}), model) for one in conversations]

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError that names the conversation."""
        for i, chat in enumerate(self.chats):
            try:
                await chat.prepare()
            except InvalidRequestError as error:
                raise BodyError(str(error), f"messages[{i}]") from error

    async def whole(self) -> dict[str, Any]:
        """A chat's answer whose choices are those of the conversations."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(chat.whole()) for chat in self.chats]
        answers = [task.result() for task in tasks]
        choices = [{**answer["choices"][0], "index": i} for i, answer in enumerate(answers)]
        usage = {
            name: sum(answer["usage"][name] for answer in answers)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        cached = sum(chat.run.num_cached for chat in self.chats)
        return {
            **answers[0],
            "choices": choices,
            "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}},
        }


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/chat/completions/batch", summary="Answer several conversations")
    async def batch(body: BatchChatRequest, request: Request) -> Response:
        work = ChatBatch(service, body, service.accept(body, "generate"))
        await work.prepare()
        return json_response(await while_connected(request, work.whole()))

    return routes
