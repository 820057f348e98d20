"""The process of an ExecutorProcess: it loads models and computes steps until its parent ends.

Nothing here imports PyTorch before this process is sure to end with its parent: that takes seconds, most of them deep
in libraries that let no thread of Python run.
"""

import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, failure
from octavo.executor.process import Failed, Load, Loaded, Reply, decode_request, encode
from octavo.parent_process import end_with_parent

if TYPE_CHECKING:
    from octavo.executor.local import LocalExecutor


class Worker:
    """Answers requests for a model, one after the other: what runs in a rank's process, whoever started it."""

    def __init__(self) -> None:
        self._executor: LocalExecutor | None = None

    def answer(self, message: bytes) -> bytes:
        """The reply to a request, both as `process.encode` writes them. What fails is a Failed."""
        reply: Reply
        try:
            request = decode_request(message)
            if isinstance(request, Load):
                if self._executor is not None:
                    self._executor.close()
                self._executor = None  # its memory is the next one's
                self._executor = _load(request)
                reply = Loaded(self._executor.info, self._executor.shape, sum(self._executor.rank_weight_bytes))
            else:
                assert self._executor is not None
                self._executor.submit(request)
                reply = self._executor.collect()
        except EngineDeadError as error:  # another rank is gone; this one says so, and is not to blame
            reply = Failed(type(error).__name__, str(error), is_of_ranks=True)
        except BaseException as error:
            reply = Failed(type(error).__name__, failure(error))
        return encode(reply)


def main(connection: Connection) -> None:
    """Answer what comes through `connection`, until it ends."""
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:  # in a thread, so that who sends never waits while we compute, or send ourselves
        try:
            while True:
                messages.put(connection.recv_bytes())
        except (EOFError, OSError):
            messages.put(None)

    threading.Thread(target=read, name="messages", daemon=True).start()
    worker = Worker()
    while (message := messages.get()) is not None:
        connection.send_bytes(worker.answer(message))


def _load(request: Load) -> "LocalExecutor":
    args, place = EngineArgs(**request.args), request.place
    from octavo.executor.local import LocalExecutor
    from octavo.loading.model import load_model
    from octavo.ops.cpu_binding import take_share

    if args.distributed_executor_backend != "ray":  # which gives each rank its processors itself
        args = take_share(args, place.rank)
    return LocalExecutor(load_model(args, place, request.link), args)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which says when to stop
    end_with_parent(int(sys.argv[2]), with_thread=sys.argv[3] == "thread")
    main(Connection(int(sys.argv[1])))
