"""Other APIs' requests as chats: the one chat that each becomes, and what its answer is made of as it comes."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from pydantic import ValidationError

from octavo.client.output_processor import Chunk
from octavo.params import RequestOutputKind, SamplingParams
from octavo.server.answer_events import Event
from octavo.server.body import BodyError
from octavo.server.chat_completions import Chat, prompt_of
from octavo.server.protocol import ChatRequest
from octavo.server.served_models import ServedModel
from octavo.server.service import MediaPrompt, Service


def chat_request(values: dict[str, Any]) -> ChatRequest:
    """The chat of these values. Raises BodyError for the first one that cannot be, by its name there."""
    try:
        return ChatRequest.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:6])
        raise BodyError(first["msg"].removeprefix("Value error, "), place or None) from error


async def answer_pieces(chat: Chat, in_parts: bool = True) -> AsyncGenerator[tuple[list[Event], Chunk], None]:
    """What is certain of a prepared chat's only answer as it comes, and the chunk that made it so.

    Args:
        in_parts: as it is computed; otherwise all at once.
    """
    kind = RequestOutputKind.DELTA if in_parts else RequestOutputKind.FINAL_ONLY
    reader = chat.new_reader()
    async with contextlib.aclosing(chat.service.generate(chat.run, chat.request.priority or 0, kind)) as chunks:
        async for chunk in chunks:
            yield reader.feed(chunk.text, chunk.finish_reason is not None), chunk


async def count_tokens(service: Service, request: ChatRequest, model: ServedModel) -> int:
    """How many tokens a chat's prompt has, also one that is too long to be answered. Raises InvalidRequestError."""
    prompt = await prompt_of(service, request)
    if isinstance(prompt, MediaPrompt):
        return len((await service.check(prompt, SamplingParams(max_tokens=1), model.adapter)).token_ids)
    return await num_tokens(service, prompt["prompt"], bool(prompt["add_special_tokens"]))


async def num_tokens(service: Service, text: str, add_special_tokens: bool = False) -> int:
    """How many tokens a text has."""
    if not text or service.tokenizer is None:
        return 0
    return len(await service.threads.run(len(text), service.tokenizer.encode, text, add_special_tokens))
