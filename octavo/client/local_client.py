"""An engine in this process: computed by who waits for it, or in a thread of its own."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

from octavo.client.engine_client import KnownEngine, StepClient
from octavo.client.output_processor import Processor, processor_of
from octavo.client.request_counts import RequestCounts
from octavo.engine.engine import Engine
from octavo.engine.messages import Failed, Output, Ready
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError, failure
from octavo.lora import AdapterRef, LoRARequest
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt

log = logging.getLogger("octavo")

AnyOutput = RequestOutput | PoolingRequestOutput[PoolingOutput] | Failed

ACTIONS_PER_STEP = 32
"""Most requests that are added or ended between two steps."""
LOOK_AGAIN = 0.5
"""Seconds after which who waits for the engine's thread sees whether it is still there."""


class LocalClient:
    """An EngineClient whose engine computes a step whenever somebody waits for one.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._outputs: list[Output] = []

    @property
    def ready(self) -> Ready:
        return self.engine.ready

    @property
    def has_work(self) -> bool:
        """Whether `receive` has anything to compute or to give."""
        return self.engine.has_work or bool(self._outputs)

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        self.engine.add_request(request_id, prompt, params, priority)

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        self.engine.load_adapter(request_id, adapter)

    def drop_adapter(self, adapter: AdapterRef) -> None:
        self.engine.drop_adapter(adapter)

    def finish(self, request_id: str, index: int) -> None:
        self.engine.finish(request_id, index)

    def abort(self, request_id: str) -> None:
        self._outputs += self.engine.abort([request_id])

    def pending(self) -> list[Output]:
        """What there is to give without computing anything."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def receive(self) -> list[Output]:
        """Compute a step, and give what has come."""
        return self.pending() + self.engine.step()

    def receive_of(self, request_id: str) -> list[Output]:
        """Compute a step, and give what has come of one request. That of others waits for `receive`."""
        outputs = self.receive()
        self._outputs = [output for output in outputs if output.request_id != request_id]
        return [output for output in outputs if output.request_id == request_id]


class ThreadClient:
    """An EngineClient whose engine computes in a thread of its own, until `close`.

    Args:
        engine: the engine; nobody else may use it from now on.
        on_outputs: called with what a step has given, on the engine's thread.
        on_death: called on that thread when the engine has ended, with the error for all who wait.
    """

    def __init__(
        self,
        engine: Engine,
        on_outputs: Callable[[list[Output]], None],
        on_death: Callable[[EngineDeadError], None],
    ) -> None:
        self._local = LocalClient(engine)
        self._on_outputs, self._on_death = on_outputs, on_death
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = self._is_paused = False
        self._death: str | None = None
        self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> Ready:
        return self._local.ready

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        self.check_alive()
        self._post(lambda: self._start(request_id, lambda: self._local.add(request_id, prompt, params, priority)))

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        self.check_alive()
        self._post(lambda: self._start(request_id, lambda: self._local.load_adapter(request_id, adapter)))

    def drop_adapter(self, adapter: AdapterRef) -> None:
        self._post(lambda: self._local.drop_adapter(adapter))

    def check_alive(self) -> None:
        """Raises EngineDeadError if the engine has ended."""
        if self._death is not None or self._closing:
            raise EngineDeadError(self._death or "the engine has been stopped by shutdown(). Start a new one.")

    def finish(self, request_id: str, index: int) -> None:
        self._post(lambda: self._local.finish(request_id, index))

    def abort(self, request_id: str) -> None:
        self._post(lambda: self._local.abort(request_id))

    def pause(self, is_paused: bool) -> None:
        """Compute no further step until it is called with False. Requests may come and go meanwhile."""
        with self._wake:
            self._is_paused = is_paused
            self._wake.notify()

    def between_steps(self, action: Callable[[Engine], Any]) -> Any:
        """What `action` gives, done with the engine between two steps; what steps before it gave has been handed over.

        Raises what it raises, and EngineDeadError if the engine ends before.
        """
        self.check_alive()
        done: Future[Any] = Future()

        def act() -> None:
            try:
                done.set_result(action(self._local.engine))
            except Exception as error:
                done.set_exception(error)

        self._post(act)
        while not wait([done], LOOK_AGAIN).done:
            self.check_alive()
        return done.result()

    def close(self) -> None:
        """Stop the thread. Requests that run are ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _start(self, request_id: str, start: Callable[[], None]) -> None:
        try:
            start()
        except OctavoError as error:
            self._on_outputs([Failed.of(request_id, error)])

    def _run(self) -> None:
        reason = ""
        try:
            while True:
                with self._wake:
                    while not (self._inbox or self._closing or (self._local.has_work and not self._is_paused)):
                        self._wake.wait()
                    if self._closing:
                        break
                    # In slices, so that a crowd that arrives at once does not hold up those who run.
                    actions = [self._inbox.popleft() for _ in range(min(len(self._inbox), ACTIONS_PER_STEP))]
                for action in actions:
                    action()
                self._on_outputs(self._local.pending() if self._is_paused else self._local.receive())
        except BaseException as error:
            log.exception("the engine has stopped")
            reason = f": {error}"
        self._death = f"the engine has stopped{reason}. Start a new one."
        self._on_death(EngineDeadError(self._death))


class LocalRequests:
    """Requests of those who compute the engine's steps themselves, or wait for them.

    Args:
        engine: the engine.
        client: takes its requests; one that computes its steps here if None.
    """

    def __init__(self, engine: KnownEngine, client: StepClient | None = None) -> None:
        if client is None:
            assert isinstance(engine, Engine)
            client = LocalClient(engine)
        self.engine, self.client = engine, client
        self.counts = RequestCounts()
        self._processors: dict[str, Processor] = {}
        self._kept: list[AnyOutput] = []

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended, or `step` has something to give of one that has."""
        return bool(self._processors or self._kept)

    @property
    def unfinished(self) -> list[str]:
        """The requests that have not ended."""
        return list(self._processors)

    def add(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | PoolingParams,
        priority: int = 0,
        adapter: LoRARequest | None = None,
        shown: dict[int, str] | None = None,
    ) -> None:
        """Queue a request, of a prompt or one that `engine.checker` has checked (which has its adapter already).

        Raises InvalidRequestError, before anything runs, for one that cannot be served, and RequestFailedError for
        one that something unexpected happened to; then nothing of it stays. What takes time to be found out, such as
        whether a grammar can be used, comes as a Failed from `step`.

        Args:
            shown: special tokens that are in the text though others are skipped, and what stands for them.
        """
        if request_id in self._processors:
            raise InvalidRequestError(f"request id {request_id!r} is already in use.")
        try:
            if isinstance(prompt, CheckedPrompt):
                checked = prompt
            else:
                checked = self.engine.checker.prompt(prompt, params, adapter)
            processor = processor_of(request_id, checked, params, self.engine.tokenizer, shown)
            self.client.add(request_id, checked, processor.params, priority)
        except OctavoError:
            raise
        except BaseException as error:
            raise RequestFailedError(f"the request could not be prepared: {failure(error)}") from error
        self._processors[request_id] = processor

    def abort(self, request_ids: Iterable[str]) -> list[AnyOutput]:
        """End requests now and free what they hold. Unknown ids are ignored. Their last outputs."""
        for request_id in request_ids:
            self.client.abort(request_id)
        outputs = self._process(self.client.pending())
        for request_id in request_ids:  # a pooling request says nothing when it is aborted
            self._processors.pop(request_id, None)
        return outputs

    def keep(self, outputs: Iterable[AnyOutput]) -> None:
        """Have `step` give outputs that came while somebody else computed or ended requests."""
        self._kept += outputs

    def step(self) -> list[AnyOutput]:
        """Compute one step, and the outputs that are due after it."""
        kept, self._kept = self._kept, []
        return kept + self._process(self.client.receive())

    def load_adapter(self, adapter: LoRARequest) -> AdapterRef:
        """Load an adapter, and wait until it is there, while other requests go on.

        Raises InvalidRequestError for one that cannot be used.
        """
        ref, request_id = self.engine.checker.adapter(adapter), f"adapter:{adapter.lora_name}"
        self.client.load_adapter(request_id, ref)
        try:
            while True:
                for message in self.client.receive_of(request_id):
                    if isinstance(message, Failed):
                        raise InvalidRequestError(message.error)
                    return ref
        except BaseException:
            self.client.abort(request_id)
            raise

    def _process(self, messages: list[Output]) -> list[AnyOutput]:
        outputs: list[AnyOutput] = []
        touched: dict[str, Processor] = {}
        for message in messages:
            request_id = message.request_id
            processor = self._processors.get(request_id)
            if processor is None:
                continue  # it has ended here already
            if isinstance(message, Failed):
                outputs.append(message)
                del self._processors[request_id]
                continue
            try:
                processor.add(message)
                touched[request_id] = processor
            except BaseException as error:
                outputs.append(self._failed(request_id, error))
        for request_id, processor in touched.items():
            if request_id not in self._processors:
                continue
            try:
                output = processor.output()
            except BaseException as error:
                outputs.append(self._failed(request_id, error))
                continue
            if output is not None and output.finished:
                del self._processors[request_id]
                self.counts.take(output, processor.lengths)
            processor.settle(self.client, request_id)
            if output is not None:
                outputs.append(output)
        return outputs

    def _failed(self, request_id: str, error: BaseException) -> Failed:
        """A request whose output cannot be made has failed, and is forgotten."""
        del self._processors[request_id]
        self.client.abort(request_id)
        return Failed(request_id, failure(error), invalid=False)
