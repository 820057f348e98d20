"""Replicas behind Python's interface: their event loop runs in a thread of its own."""

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import Callable
from functools import partial

from octavo.client.replicas import Replicas
from octavo.config import EngineArgs
from octavo.engine.messages import Failed, Output, Ready
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt

LOOK_AGAIN = 0.5
"""Seconds after which somebody who waits for a message sees whether one may still come."""


class ReplicaEngine:
    """Several engines in processes of their own, taken as one: what is known of it, and an EngineClient on any thread.

    They end with `close`, when nobody has this object any more, and with this process.

    Args:
        args: the engines' options.
        on_outputs: called with what a step of one of them has given, on a thread of its own.

    Raises OctavoError with the reason if the model cannot be loaded.
    """

    def __init__(self, args: EngineArgs, on_outputs: Callable[[list[Output]], None]) -> None:
        self.args = args
        self._loop = asyncio.new_event_loop()
        self._replicas = Replicas(args, on_outputs)
        # The thread stays as long as the processes, which end with the thread that has started them.
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="octavo-replicas", daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _stop, self._loop, self._thread, self._replicas, os.getpid())
        """End the engines. Requests that run are ended."""
        starting = asyncio.run_coroutine_threadsafe(self._replicas.start(), self._loop)
        try:
            self.tokenizer = model_tokenizer(args)
            self.ready: Ready = starting.result()
            self.checker = self.ready.checker(self.tokenizer, args.max_logprobs)
        except BaseException:
            starting.cancel()
            self.close()
            raise
        self.info, self.max_model_len = self.ready.info, self.ready.info.max_model_len

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return self._replicas.has_work

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        self.check_alive()
        if isinstance(params, SamplingParams) and params.logits_processors:
            raise InvalidRequestError(
                "logits_processors are Python objects of this process, and replicas run in others. Leave them out, or "
                "set data_parallel_size=1."
            )
        self._post(_begin, request_id, partial(self._replicas.add, request_id, prompt, params, priority))

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        self.check_alive()
        self._post(_begin, request_id, partial(self._replicas.load_adapter, request_id, adapter))

    def drop_adapter(self, adapter: AdapterRef) -> None:
        self._post(lambda replicas: replicas.drop_adapter(adapter))

    def check_alive(self) -> None:
        """Raises EngineDeadError if the engines have ended."""
        if not self.close.alive:
            raise EngineDeadError("the engine has been stopped by shutdown(). Start a new one.")
        if self._replicas.state == "dead":
            raise EngineDeadError("all replicas have died too often. Start a new engine.")

    def finish(self, request_id: str, index: int) -> None:
        self._post(lambda replicas: replicas.finish(request_id, index))

    def abort(self, request_id: str) -> None:
        self._post(lambda replicas: replicas.abort(request_id))

    def drop(self, request_id: str) -> None:
        """Abort a request, of which nothing is handed out once this returns."""
        done = threading.Event()
        if self._post(_drop, request_id, done):
            while not done.wait(LOOK_AGAIN) and self._thread.is_alive():
                pass

    def _post(self, act: Callable[..., None], *values: object) -> bool:
        """Have the loop do something with the replicas, which keeps this object from no end. Whether it runs."""
        try:
            self._loop.call_soon_threadsafe(act, self._replicas, *values)
        except RuntimeError:  # it has ended
            return False
        return True


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, replicas: Replicas, pid: int) -> None:
    if os.getpid() != pid or not thread.is_alive():  # a fork of the process has no such thread
        return

    async def stop() -> None:
        await replicas.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        loop.stop()

    asyncio.run_coroutine_threadsafe(stop(), loop)
    if threading.current_thread() is not thread:
        thread.join()


def _begin(replicas: Replicas, request_id: str, start: Callable[[], None]) -> None:
    try:
        start()
    except OctavoError as error:
        replicas.on_outputs([Failed.of(request_id, error)])


def _drop(replicas: Replicas, request_id: str, done: threading.Event) -> None:
    replicas.drop(request_id)
    done.set()


class WaitingClient(ReplicaEngine):
    """A StepClient whose engines compute elsewhere: who waits for a step gets what has come meanwhile.

    Args:
        args: the engines' options.

    Raises OctavoError with the reason if the model cannot be loaded.
    """

    def __init__(self, args: EngineArgs) -> None:
        self._arrived: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        self._outputs: list[Output] = []
        super().__init__(args, self._arrived.put)

    def abort(self, request_id: str) -> None:
        """End a request. Nothing more comes of it, so that its id may be used again."""
        self.drop(request_id)
        self._outputs = [output for output in self.pending() if output.request_id != request_id]

    def pending(self) -> list[Output]:
        """What there is to give without waiting."""
        while True:
            try:
                self._outputs += self._arrived.get_nowait()
            except queue.Empty:
                break
        outputs, self._outputs = self._outputs, []
        return outputs

    def receive(self) -> list[Output]:
        """What has come; waits for something as long as a request runs."""
        return self.pending() or self._wait()

    def receive_of(self, request_id: str) -> list[Output]:
        """What has come of one request; waits likewise. That of others waits for `receive`."""
        outputs = self.pending()
        if all(output.request_id != request_id for output in outputs):
            outputs += self._wait()
        self._outputs = [output for output in outputs if output.request_id != request_id]
        return [output for output in outputs if output.request_id == request_id]

    def _wait(self) -> list[Output]:
        """The next messages; none where none can come."""
        while True:
            try:
                return self._arrived.get(timeout=LOOK_AGAIN)
            except queue.Empty:
                if not self.has_work:
                    return []
