"""The asynchronous Python interface: one engine thread, and an async iterator for each request."""

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import torch

from octavo.config import DEFAULT_MODEL, EngineArgs, engine_args
from octavo.engine.engine import Engine, FailedRequest
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.launch import launch_engine
from octavo.llm import show_log
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams
from octavo.prompts import Prompt
from octavo.text.inputs import CheckedPrompt

log = logging.getLogger("octavo")

ACTIONS_PER_STEP = 32
"""Most requests that are added or ended between two steps."""


class _Stream:
    """Outputs on their way from the engine's thread to a coroutine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keeps_all: bool) -> None:
        self._loop = loop
        self._ready = asyncio.Event()
        self._items: deque[Any] = deque()
        self._keeps_all = keeps_all

    def put(self, item: Any) -> None:
        """Called on the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item: Any) -> None:
        # A cumulative output says all that the one before it said, for a reader who is slower than the model.
        if not self._keeps_all and self._items and not isinstance(item, Exception):
            self._items.clear()
        self._items.append(item)
        self._ready.set()

    async def get(self) -> Any:
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        return item


class AsyncLLM:
    """A model that answers many requests at a time, each as its own async iterator.

    Args are those of octavo.LLM. The engine runs in a thread of its own until `shutdown()`.
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> None:
        show_log()
        args, notes = engine_args(model, options)
        for note in notes:
            log.info(note)
        self._start(launch_engine(args))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "AsyncLLM":
        """An AsyncLLM of options that are already an EngineArgs."""
        llm = cls.__new__(cls)
        llm._start(launch_engine(args))
        return llm

    def _start(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = itertools.count()
        self._streams: dict[str, _Stream] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs of one request as they come, by its output kind. Closing the iterator aborts the request.

        Raises InvalidRequestError, before anything runs, for a request that cannot be served, and EngineDeadError if
        the engine has stopped.
        """
        keeps_all = sampling_params.output_kind is RequestOutputKind.DELTA
        async for output in self._request(prompt, sampling_params, request_id, priority, keeps_all):
            yield output

    async def encode(
        self, prompt: Prompt, pooling_params: PoolingParams | None = None, request_id: str | None = None
    ) -> PoolingRequestOutput[PoolingOutput]:
        """The pooled answer of one request."""
        stream = self._request(prompt, pooling_params or PoolingParams(), request_id, 0, True)
        async with contextlib.aclosing(stream):
            async for output in stream:
                output.outputs.data = torch.from_numpy(output.outputs.data)
                return output  # type: ignore[no-any-return]
        raise EngineDeadError("the engine ended the request without an answer.")

    async def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        request_id: str | None,
        priority: int,
        keeps_all: bool,
    ) -> AsyncGenerator[Any, None]:
        self._check_alive()
        # Tokenized here, so that the engine's thread does nothing but compute.
        checked = await asyncio.to_thread(self.engine.checker.prompt, prompt, params)
        name = request_id or f"request-{next(self._ids)}"
        if name in self._streams:
            raise InvalidRequestError(f"request id {name!r} is already in use.")
        stream = self._streams[name] = _Stream(asyncio.get_running_loop(), keeps_all)
        finished = False
        try:
            self._post(lambda: self._add(name, checked, params, priority, stream))
            while not finished:
                output = await stream.get()
                finished = output.finished
                if isinstance(output, FailedRequest):
                    if output.invalid:
                        raise InvalidRequestError(output.error)
                    raise RequestFailedError(f"request {output.request_id} failed: {output.error}")
                yield output
        finally:
            self._streams.pop(name, None)
            if not finished:
                self._post(lambda: self._abort_quietly(name))

    async def abort(self, request_id: str) -> None:
        """End a request; its iterator gets a last output with finish_reason "abort"."""
        self._post(lambda: self._deliver(self.engine.abort([request_id])))

    def _abort_quietly(self, request_id: str) -> None:
        """End a request that nobody listens to any more."""
        self.engine.abort([request_id])

    def shutdown(self) -> None:
        """Stop the engine's thread. Requests that run are ended."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _check_alive(self) -> None:
        if self._death is not None or self._stopping:
            reason = f": {self._death}" if self._death else " by shutdown()"
            raise EngineDeadError(f"the engine has stopped{reason}. Start a new one.")

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _add(
        self, name: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int, stream: _Stream
    ) -> None:
        try:
            self.engine.add_request(name, prompt, params, priority)
        except OctavoError as error:
            stream.put(error)

    def _deliver(self, outputs: Any) -> None:
        for output in outputs:
            if stream := self._streams.get(output.request_id):
                stream.put(output)

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._inbox or self._stopping or self.engine.has_work):
                        self._wake.wait()
                    if self._stopping:
                        break
                    # In slices, so that a crowd that arrives at once does not hold up those who run.
                    actions = [self._inbox.popleft() for _ in range(min(len(self._inbox), ACTIONS_PER_STEP))]
                for action in actions:
                    action()
                self._deliver(self.engine.step())
        except BaseException as error:
            log.exception("the engine has stopped")
            self._death = error
        dead = EngineDeadError(f"the engine has stopped{f': {self._death}' if self._death else ''}.")
        for stream in list(self._streams.values()):
            stream.put(dead)
