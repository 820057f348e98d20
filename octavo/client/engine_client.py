"""What everybody who runs requests speaks to: an engine, wherever it runs."""

from typing import Protocol

from octavo.config import EngineArgs
from octavo.engine.messages import Output, Ready
from octavo.loading.model_info import ModelInfo
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import Tokenizer


class KnownEngine(Protocol):
    """What is known of an engine, or of several that are taken as one: an Engine, a ReplicaEngine."""

    @property
    def args(self) -> EngineArgs: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def ready(self) -> Ready: ...

    @property
    def info(self) -> ModelInfo: ...

    @property
    def checker(self) -> InputChecker: ...

    @property
    def max_model_len(self) -> int: ...


class EngineClient(Protocol):
    """Takes requests for an engine, in this process or in another.

    What the engine says of them (messages.Output) is handed out a step at a time, each client in its own way: a
    StepClient to who calls its `receive`, ThreadClient, ProcessClient and Replicas to their `on_outputs`.
    """

    @property
    def ready(self) -> Ready:
        """What must be known of the engine."""
        ...

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        """Queue a request. Never waits for the engine.

        Raises InvalidRequestError for one that cannot be served (if that is found out later it comes as a Failed),
        RequestFailedError for one that could not be prepared, and EngineDeadError where no engine runs.
        """
        ...

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        """Have an adapter loaded, without a prompt: a Loaded or a Failed comes. `abort` ends the waiting.

        Raises as `add` does.
        """
        ...

    def drop_adapter(self, adapter: AdapterRef) -> None:
        """Give back an adapter's memory, once no request needs it any more."""
        ...

    def finish(self, request_id: str, index: int) -> None:
        """End one of a request's sequences, because a stop string has come. Unknown ones are ignored."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request; its last messages have the finish reason "abort". Unknown ones are ignored."""
        ...


class StepClient(EngineClient, Protocol):
    """An EngineClient that gives what has come to who asks for it, a step at a time."""

    def pending(self) -> list[Output]:
        """What there is to give without computing or waiting for anything."""
        ...

    def receive(self) -> list[Output]:
        """What a step has given, computed now or waited for."""
        ...

    def receive_of(self, request_id: str) -> list[Output]:
        """Likewise of one request. What comes of others meanwhile waits for `receive`."""
        ...
