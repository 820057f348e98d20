"""The model in a process of its own: this end of it. Its other end is `process_worker`."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from octavo import errors
from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceResult, SequenceStart, Step, StepResult
from octavo.loading.model_info import ModelInfo
from octavo.params import LogitsProcessor


class Load(msgspec.Struct, tag=True):
    """Load a model, in place of the one before."""

    args: dict[str, Any]
    """The fields of EngineArgs."""


class Loaded(msgspec.Struct, tag=True):
    """The model is loaded."""

    info: ModelInfo
    shape: CacheShape


class Failed(msgspec.Struct, tag=True):
    """What was asked for could not be done."""

    kind: str
    """The name of the error in octavo.errors, if it is one of these."""
    reason: str


Request = Load | Step
Reply = Loaded | StepResult | Failed

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_start = msgspec.msgpack.Decoder(SequenceStart).decode
decode_reply: Callable[[bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode


class ExecutorProcess:
    """A process that runs models, one at a time. It ends with `close`, with the thread that made it, or with this one.

    Raises OSError where no process can be started.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "octavo.executor.process_worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.PIPE,  # its end says that this process has ended
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())

    def send(self, request: Request) -> None:
        """Never waits for the process to be done with something else; `receive` says if it has ended."""
        message = encode(request)
        with suppress(OSError):
            self._connection.send_bytes(message)

    def receive(self) -> Reply:
        """The answer to the oldest request that has none yet. Raises EngineDeadError if the process has ended."""
        try:
            return decode_reply(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            status = self.process.wait()
            raise EngineDeadError(f"the process that runs the model has ended (exit status {status}).") from error

    def load(self, args: EngineArgs) -> "ProcessExecutor":
        """Load the model of `args`, in place of the one before, whose executor is of no use any more.

        Raises the errors of octavo.errors for everything wrong with the model or the options.
        """
        self.send(Load(dataclasses.asdict(args)))
        reply = self.receive()
        if isinstance(reply, Failed):
            kind = getattr(errors, reply.kind, OctavoError)
            raise kind(reply.reason)
        assert isinstance(reply, Loaded)
        return ProcessExecutor(self, reply)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self.process.kill()
        self.process.communicate()


class ProcessExecutor:
    """An Executor whose model runs in another process. Several steps may be submitted before one is collected.

    Args:
        process: where it runs.
        loaded: what that says of its model.
    """

    def __init__(self, process: ExecutorProcess, loaded: Loaded) -> None:
        self.process, self.info, self.shape = process, loaded.info, loaded.shape
        self._refused: deque[list[SequenceResult]] = deque()
        """For each step that is not collected, the sequences that could not be told of."""

    def keep_processors(self, seq_id: int, processors: Sequence[LogitsProcessor]) -> None:
        raise InvalidRequestError(
            "logits_processors are Python objects of this process, and the model runs in another one. Leave them out, "
            "or run the model in this process."
        )

    def submit(self, step: Step) -> None:
        self._refused.append([])
        self.process.send(msgspec.structs.replace(step, starts=[self._writable(start) for start in step.starts]))

    def _writable(self, start: SequenceStart) -> SequenceStart:
        """The sequence; one whose values no message can hold is refused, and goes without them."""
        try:
            decode_start(encode(start))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"the request holds a value that cannot be sent to the model's process: {error}"
            self._refused[-1].append(SequenceResult(start.seq_id, error=reason, is_invalid=True))
            return SequenceStart(start.seq_id, start.prompt_token_ids, features=start.features)
        return start

    def collect(self) -> StepResult:
        refused, result = self._refused.popleft(), self.process.receive()
        if isinstance(result, Failed):
            raise RequestFailedError(result.reason)
        assert isinstance(result, StepResult)
        result.refused += refused
        return result

    def close(self) -> None:
        self.process.close()
