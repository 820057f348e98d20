"""Chat templates are programs of strangers: they run in a process of their own, which has bounds of time and memory.

A thread cannot be ended, and a template can keep one busy in too many ways (loops, `range`, `join`, widths, joined
lists that double) to bound each by itself. A process can. It costs a fifth of a millisecond a prompt, and 0.1 s once.

`render` is called here; what runs there is template_worker.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

from octavo.errors import InvalidRequestError

SECONDS = 2.0
"""Most processor time for one prompt."""
MEMORY = 1 << 29
"""Most memory of a process, in bytes (where the system counts it)."""
CHARACTERS = 1 << 26
"""Longest prompt."""
PROCESSES = 4
"""How many prompts are rendered at a time; more wait."""

LIMITS = f"the limits are {SECONDS:g} s, {MEMORY >> 20} MiB and {CHARACTERS >> 20} Mi characters"


class _Process:
    """A process that renders, one prompt at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from octavo.text.template_worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # Ctrl-C on a terminal is not for it, not even while it starts
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: bytes) -> bytes | None:
        """The answer; None if the process died of the question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            send(self._process.stdin, question)
        return receive(self._process.stdout)

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.kill()
        self._process.wait()


class _Pool:
    """Processes, started when they are needed."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._free = threading.BoundedSemaphore(PROCESSES)

    def ask(self, question: bytes) -> bytes | None:
        with self._free:
            process = self._take()
            answer = None
            try:
                answer = process.ask(question)
            finally:
                if answer is None:  # it died, or this thread was interrupted and its answer would be the next one's
                    process.close()
                else:
                    self._idle.append(process)
            return answer

    def _take(self) -> _Process:
        while True:
            try:
                process = self._idle.pop()
            except IndexError:
                return _Process()
            if process.alive:
                return process
            process.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _forget() -> None:
    """A copy of this process shares pipes with it, and must not speak into them."""
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_forget)


def render(question: dict[str, Any]) -> str:
    """The prompt of a conversation: `question` has the arguments of template_worker's `prompt`.

    Raises InvalidRequestError for messages that the template refuses, and where it takes too much.
    """
    try:
        data = json.dumps(question, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the messages cannot be passed to a chat template: {error!s:.200}") from error
    answer = _pool.ask(data)
    if answer is None:
        raise InvalidRequestError(f"the chat template exceeded its limits on these messages: {LIMITS}.")
    kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
    if kind == b"!":
        raise InvalidRequestError(f"the chat template rejected these messages: {text}")
    return text


def _plain(value: Any) -> Any:
    """Objects of libraries (messages as models, mappings of other kinds) as what templates know."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "keys"):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not a plain value")


def send(pipe: IO[bytes], data: bytes) -> None:
    """One message: its length in 8 bytes, and itself."""
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None where the pipe ends before its end."""
    head = pipe.read(8)
    size = int.from_bytes(head, "little")
    data = pipe.read(size) if len(head) == 8 else b""
    return data if len(head) == 8 and len(data) == size else None
