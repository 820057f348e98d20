"""Requests of coroutines: each reads its own stream, whatever client the engine is behind."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from octavo.client.engine_client import EngineClient
from octavo.client.output_processor import Processor
from octavo.engine.messages import Failed, Output, Tokens
from octavo.errors import InvalidRequestError, OctavoError, RequestFailedError, failure
from octavo.lora import AdapterRef


class RequestStream:
    """What has come for one request and was not taken yet, on its way to a coroutine.

    Tokens of one sequence that were not taken are kept together, so that a backlog costs no more than an answer.
    """

    def __init__(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._messages: list[Output] = []
        self._latest: dict[int, Tokens] = {}
        self._error: OctavoError | None = None
        self._waiter: asyncio.Future[None] | None = None
        """Of who waits for something: there is one reader, and a future costs less than an Event."""

    def put(self, item: Output | OctavoError) -> None:
        """Called on any thread."""
        if threading.get_ident() == self._thread:
            self._put(item)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader any more
                self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item: Output | OctavoError) -> None:
        if isinstance(item, OctavoError):
            self._error = self._error or item
        elif isinstance(item, Tokens):
            latest = self._latest.get(item.index)
            if latest is None or item.prompt_logprobs is not None:
                self._latest[item.index] = item
                self._messages.append(item)
            else:
                _join(latest, item)
        else:
            self._messages.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Output]:
        """All that has come since the last call; waits for something. Raises the error that ended the request."""
        while not self._messages and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        messages, self._messages, self._latest = self._messages, [], {}
        if self._error is not None and not messages:
            raise self._error
        return messages


def _join(first: Tokens, second: Tokens) -> None:
    """Add to tokens those that came after them."""
    first.token_ids += second.token_ids
    if second.logprobs is not None:
        first.logprobs = (first.logprobs or []) + second.logprobs
    first.finish_reason, first.stop_reason = second.finish_reason, second.stop_reason
    first.is_invalid = second.is_invalid
    first.num_preemptions += second.num_preemptions


class AsyncRequests:
    """Requests that coroutines wait for. A client hands what its engine says to `on_outputs`, or to `fail_all`.

    The engine knows each by a name of its own: an id may be used again as soon as its request is closed, while the
    engine still says something of that one.
    """

    def __init__(self) -> None:
        self._streams: dict[str, RequestStream] = {}
        """By the engine's names."""
        self._names: dict[str, str] = {}
        """The engine's name of each request's id."""
        self._numbers = itertools.count()

    @property
    def unfinished(self) -> list[str]:
        """The ids of requests that have not ended."""
        return list(self._names)

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def on_outputs(self, messages: list[Output]) -> None:
        """Hand out what a step gave. Called on any thread."""
        for message in messages:
            if (stream := self._streams.get(message.request_id)) is not None:  # otherwise it has ended here already
                stream.put(message)

    def fail_all(self, error: OctavoError) -> None:
        """End all requests with an error. Called on any thread."""
        for stream in list(self._streams.values()):
            stream.put(error)

    def fail(self, request_id: str, error: OctavoError) -> None:
        """End a request with an error, which its reader gets after what has come. An unknown id is ignored."""
        if (stream := self._streams.get(self._names.get(request_id, ""))) is not None:
            stream.put(error)

    def abort(self, client: EngineClient, request_id: str) -> None:
        """Have the engine end a request; its reader gets a last output, "abort". An unknown id is ignored."""
        if (name := self._names.get(request_id)) is not None:
            client.abort(name)

    async def generate(
        self,
        client: EngineClient,
        processor: Processor,
        priority: int = 0,
        on_tokens: Callable[[int], None] = lambda count: None,
    ) -> AsyncGenerator[Any, None]:
        """Run the request of `processor`: its outputs as they come. Closing the generator aborts the request.

        Args:
            client: takes the request.
            processor: makes its outputs.
            priority: smaller goes first.
            on_tokens: called whenever tokens have come, with how many.

        Raises InvalidRequestError for what the engine refuses, RequestFailedError for what fails, and EngineDeadError
        if the engine dies or does not run.
        """
        request_id = processor.request_id
        await self._begin(processor)
        if request_id in self._names:
            raise InvalidRequestError(f"request id {request_id!r} is already in use.")
        name = self._names[request_id] = f"{next(self._numbers)}:{request_id}"
        stream = self._streams[name] = RequestStream()
        is_running = False
        try:
            client.add(name, processor.prompt, processor.params, priority)
            is_running = True
            while is_running:
                messages, before = await stream.take(), processor.num_tokens
                is_running = not any(isinstance(message, Failed) for message in messages)
                output = _next_output(processor, messages)
                on_tokens(processor.num_tokens - before)
                if processor.finished:
                    is_running = False
                    self._forget(request_id, name)  # what the engine still says of it is of no use
                processor.settle(client, name)
                if output is not None:
                    yield output
        finally:
            self._forget(request_id, name)
            if is_running:
                client.abort(name)

    async def _begin(self, processor: Processor) -> None:
        """What a request waits for before it is sent."""

    async def load_adapter(self, client: EngineClient, adapter: AdapterRef) -> None:
        """Have an adapter loaded, and wait until it is there. Ending the wait leaves the engine without it.

        Raises InvalidRequestError for an adapter that cannot be used, and as `generate` does.
        """
        name = f"{next(self._numbers)}:adapter"
        stream = self._streams[name] = RequestStream()
        is_loading = False
        try:
            client.load_adapter(name, adapter)
            is_loading = True
            for message in await stream.take():
                is_loading = False
                if isinstance(message, Failed):
                    raise message.exception()
        finally:
            self._streams.pop(name, None)
            if is_loading:
                client.abort(name)

    def _forget(self, request_id: str, name: str) -> None:
        self._streams.pop(name, None)
        if self._names.get(request_id) == name:  # otherwise another request has the id by now
            del self._names[request_id]


def _next_output(processor: Processor, messages: list[Output]) -> Any:
    """The output that is due after what has come."""
    try:
        for message in messages:
            if isinstance(message, Failed):
                raise message.exception()
            processor.add(message)
        return processor.output()
    except OctavoError:
        raise
    except BaseException as error:
        raise RequestFailedError(failure(error)) from error
