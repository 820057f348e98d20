"""/v1/responses"""

import contextlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator
from itertools import accumulate
from typing import Any

from octavo.client.output_processor import Chunk
from octavo.errors import InvalidRequestError
from octavo.server.answer_events import Event, Text, Thought
from octavo.server.body import BodyError
from octavo.server.chat_completions import Chat
from octavo.server.http_errors import as_event_body
from octavo.server.inner_chat import answer_pieces, num_tokens
from octavo.server.request_errors import NotFoundError
from octavo.server.response_events import OutputItems, ended
from octavo.server.response_items import input_items, messages_of
from octavo.server.response_request import ResponsesRequest
from octavo.server.response_store import Kept, ResponseStore
from octavo.server.served_models import ServedModel
from octavo.server.service import Service

Value = dict[str, Any]


class ResponseWork:
    """One request of /v1/responses. Raises BodyError or NotFoundError for what cannot be.

    Args:
        service: computes the answer, as that of a chat.
        request: the body.
        model: answers it.
        store: has earlier responses, and keeps this one.
    """

    def __init__(self, service: Service, request: ResponsesRequest, model: ServedModel, store: ResponseStore) -> None:
        self.service, self.request, self.model, self.store = service, request, model, store
        self.keeps = request.store is not False and store.max_bytes > 0
        if request.background and not self.keeps:
            raise BodyError("a response in the background needs store=true, and a server that keeps any.", "background")
        before = earlier(store, request.previous_response_id)
        if before is not None and before.response["status"] not in ("completed", "incomplete"):
            raise BodyError(f"that response is {before.response['status']}.", "previous_response_id")
        items = input_items(request.input)
        so_far = [] if before is None else before.conversation()
        messages = messages_of(request.instructions, [*so_far, *items], first=-len(so_far))
        self.chat = Chat(service, request.chat(messages), model)
        self.kept = Kept(self._begun(), items, before)
        self.chat.id = self.kept.id
        self._num_events = 0
        self._waiting = list[Any]()
        """Entries of tokens whose place in the answer is not certain yet."""

    def _begun(self) -> Value:
        """The response before there is anything of it."""
        request = self.request
        as_asked = request.model_dump(exclude_none=True, by_alias=True, include=set(_ECHOED))
        return {
            "id": self.service.new_id("resp").replace("-", "_"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "queued" if request.background else "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": self.model.name,
            "output": [],
            "usage": None,
            **_ECHOED,
            **as_asked,
            "store": self.keeps,
        }

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError."""
        await self.chat.prepare()
        params = self.chat.run.params
        self.kept.response |= {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_output_tokens": self.request.max_output_tokens,
        }

    async def whole(self) -> Value:
        """The response, when all is there."""
        # Of what the log-probabilities are, only parts tell.
        async for _ in self._steps(in_parts=self.request.wants_logprobs, is_told=False):
            pass
        self._keep()
        return self.kept.response

    async def events(self) -> AsyncGenerator[Value, None]:
        """The events of a stream. What fails behind the first one is the last one's matter."""
        has_begun = False
        try:
            async with contextlib.aclosing(self._steps(in_parts=True, is_told=True)) as steps:
                async for events in steps:
                    if not has_begun:
                        has_begun = True
                        for event in self._beginning():
                            yield event
                    for event in events:
                        yield self._numbered(event)
        except Exception as error:
            if not has_begun:
                raise
            self.fail(error)
        self._keep()
        response = self.kept.response
        yield self._numbered({"type": f"response.{response['status']}", "response": response})

    def _beginning(self) -> list[Value]:
        response = self.kept.response = {**self.kept.response, "status": "in_progress"}
        return [
            self._numbered({"type": f"response.{step}", "response": response}) for step in ("created", "in_progress")
        ]

    async def _steps(self, in_parts: bool, is_told: bool) -> AsyncGenerator[list[Value], None]:
        """Events as the answer comes; the response is complete behind the last."""
        output, chat, finish = OutputItems(self.chat.readers.call_id, is_told), self.chat, None
        thoughts = list[str]()
        async with contextlib.aclosing(answer_pieces(chat, in_parts)) as pieces:
            async for events, chunk in pieces:
                thoughts += [event.text for event in events if isinstance(event, Thought)]
                yield output.take(events, self._logprobs(events, chunk))
                finish = chunk.finish_reason
        yield output.end(finish == "length")
        usage = self._usage(await num_tokens(self.service, "".join(thoughts)))
        self.kept.response = ended(self.kept.response, output.items, finish, usage)

    def _logprobs(self, events: list[Event], chunk: Chunk) -> list[Value]:
        """Of the text among the events; what is thought or called has none."""
        if not self.request.wants_logprobs:
            return []
        self._waiting += chunk.entries
        if not events:
            return []
        entries, self._waiting = self._waiting, []
        text = "".join(event.text for event in events if isinstance(event, Text))
        if not text:
            return []
        ends = list(accumulate(len(entry.text.text) for entry in entries))
        at = "".join(entry.text.text for entry in entries).rfind(text)
        if at >= 0:  # around it may be markers, and text that is not certain yet
            first, last = bisect_right(ends, at), bisect_left(ends, at + len(text)) + 1
            entries, self._waiting = entries[first:last], entries[last:]
        logprobs: list[Value] = self.chat.writer.chat(entries, self.request.top_logprobs or 0)["content"]
        return logprobs

    def _usage(self, reasoning_tokens: int) -> Value:
        usage = self.chat.run.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": self.chat.run.num_cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }

    def fail(self, error: Exception) -> None:
        """The response has failed."""
        code = "invalid_prompt" if isinstance(error, InvalidRequestError) else "server_error"
        message = as_event_body(error)["error"]["message"]
        self.kept.response = {
            **self.kept.response,
            "status": "failed",
            "error": {"code": code, "message": message},
        }

    def _numbered(self, event: Value) -> Value:
        number, self._num_events = self._num_events, self._num_events + 1
        return {**event, "sequence_number": number}

    def _keep(self) -> None:
        if self.keeps:
            self.store.put(self.kept)


_ECHOED: Value = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request, and what stands for what that leaves out."""


def earlier(store: ResponseStore, id: str | None) -> Kept | None:
    """The response of that id, None for no id. Raises NotFoundError where it is not kept (any longer)."""
    if id is None:
        return None
    if (kept := store.get(id)) is None:
        raise NotFoundError(
            f"Response with id {id!r:.80} not found. Only those with store=true are kept, in memory, up to the bound "
            "of --response-store-size."
        )
    return kept
