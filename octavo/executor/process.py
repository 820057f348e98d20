"""The model in a process of its own: this end of it. Its other end is `process_worker`."""

import dataclasses
import os
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import msgspec

from octavo import errors
from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError
from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceResult, SequenceStart, Step, StepResult
from octavo.loading.model_info import ModelInfo
from octavo.params import LogitsProcessor
from octavo.rank_place import RankLink, RankPlace


class Load(msgspec.Struct, tag=True):
    """Load a model, in place of the one before: all of it, or one rank's part."""

    args: dict[str, Any]
    """The fields of EngineArgs."""
    place: RankPlace = RankPlace()
    link: RankLink = RankLink()

    @classmethod
    def of(cls, args: EngineArgs, place: RankPlace, link: RankLink) -> "Load":
        return cls(dataclasses.asdict(args), place, link)


class Loaded(msgspec.Struct, tag=True):
    """The model is loaded."""

    info: ModelInfo
    shape: CacheShape
    weight_bytes: int
    """Of the weights that are there."""


class Failed(msgspec.Struct, tag=True):
    """What was asked for could not be done."""

    kind: str
    """The name of the error in octavo.errors, if it is one of these."""
    reason: str
    is_of_ranks: bool = False
    """Whether a rank missed another: it is not to blame."""

    def error(self) -> OctavoError:
        """The error that loading ends with."""
        kind = getattr(errors, self.kind, OctavoError)
        return (
            kind(self.reason) if isinstance(kind, type) and issubclass(kind, OctavoError) else OctavoError(self.reason)
        )


Request = Load | Step
Reply = Loaded | StepResult | Failed

WORKER = (sys.executable, "-m", "octavo.executor.process_worker")

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_start = msgspec.msgpack.Decoder(SequenceStart).decode
decode_reply: Callable[[bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode


class ExecutorProcess:
    """A process that runs models, one at a time. It ends with `close`, or with this process.

    Args:
        inherits: file descriptors that it has as well.
        timeout: seconds after which a process that takes none of a message's bytes, or stops in the middle of one,
            counts as ended; None to wait for it.

    Raises OSError where no process can be started.
    """

    def __init__(self, inherits: Sequence[int] = (), timeout: float | None = None) -> None:
        ours, theirs = socket.socketpair()
        if timeout is not None:
            limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, limit)
        is_main = threading.current_thread() is threading.main_thread()  # which ends with the process
        with theirs:
            self.process = subprocess.Popen(
                [*WORKER, str(theirs.fileno()), str(os.getpid()), "thread" if is_main else "process"],
                stdin=subprocess.PIPE,  # its end says that this process has ended
                pass_fds=[theirs.fileno(), *inherits],
            )
        self.connection = Connection(ours.detach())
        self._finalizer = weakref.finalize(self, _end, self.process, self.connection)

    def send(self, request: Request) -> None:
        """Never waits for the process to be done with something else; `receive` says if it has ended."""
        self.send_bytes(encode(request))

    def send_bytes(self, message: bytes) -> None:
        """`send` of what `encode` has made."""
        with suppress(OSError):
            self.connection.send_bytes(message)

    def receive(self) -> Reply:
        """The answer to the oldest request that has none yet. Raises EngineDeadError if the process has ended."""
        try:
            return decode_reply(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise EngineDeadError(f"the process that runs the model {self.end()}.") from error

    def end(self) -> str:
        """How the process ended, or that it has stopped to answer."""
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "does not answer"
        return f"has ended (exit status {status})"

    def load(self, args: EngineArgs) -> "ProcessExecutor":
        """Load the model of `args`, in place of the one before, whose executor is of no use any more.

        Raises the errors of octavo.errors for everything wrong with the model or the options.
        """
        self.send(Load(dataclasses.asdict(args)))
        reply = self.receive()
        if isinstance(reply, Failed):
            raise reply.error()
        assert isinstance(reply, Loaded)
        return ProcessExecutor(self, reply)

    def close(self) -> None:
        """End the process, whatever it does. Who forgets it ends it too."""
        self._finalizer()


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.communicate()


def refuse_processors() -> NoReturn:
    """Raises InvalidRequestError: logits processors are no plain data."""
    raise InvalidRequestError(
        "logits_processors are Python objects of this process, and the model runs in another one. Leave them out, "
        "or run the model in this process."
    )


def writable(step: Step) -> tuple[Step, list[SequenceResult]]:
    """The step, without the values of sequences whose values no message can hold; these, refused."""
    starts, refused = [], []
    for start in step.starts:
        try:
            decode_start(encode(start))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"the request holds a value that cannot be sent to the model's process: {error}"
            refused.append(SequenceResult(start.seq_id, error=reason, is_invalid=True))
            start = SequenceStart(start.seq_id, start.prompt_token_ids, features=start.features)
        starts.append(start)
    return msgspec.structs.replace(step, starts=starts), refused


class ProcessExecutor:
    """An Executor whose model runs in another process. Several steps may be submitted before one is collected.

    Args:
        process: where it runs.
        loaded: what that says of its model.
    """

    def __init__(self, process: ExecutorProcess, loaded: Loaded) -> None:
        self.process, self.info, self.shape, self.max_steps = process, loaded.info, loaded.shape, 1
        self.begins_early = False
        self.rank_weight_bytes = [loaded.weight_bytes]
        self._refused: deque[list[SequenceResult]] = deque()
        """For each step that is not collected, the sequences that could not be told of."""

    def keep_processors(self, seq_id: int, processors: Sequence[LogitsProcessor]) -> None:
        refuse_processors()

    def submit(self, step: Step) -> None:
        step, refused = writable(step)
        self._refused.append(refused)
        self.process.send(step)

    def collect(self) -> StepResult:
        refused, result = self._refused.popleft(), self.process.receive()
        if isinstance(result, Failed):
            raise RequestFailedError(result.reason)
        assert isinstance(result, StepResult)
        result.refused += refused
        return result

    def check(self) -> None:
        if self.process.process.poll() is not None:
            raise EngineDeadError(f"the process that runs the model {self.process.end()}.")

    def close(self) -> None:
        self.process.close()
