"""An engine in a process of its own: started here, sent requests, and what it says handed out.

If the engine dies, everybody who waits gets an error, and it is started again, a bounded number of times.
"""

import asyncio
import collections
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable

from octavo.client.channel import Channel
from octavo.config import EngineArgs
from octavo.engine.messages import (
    Abort,
    Add,
    Command,
    Died,
    DropAdapter,
    Finish,
    LoadAdapter,
    LoadFailed,
    Output,
    Ready,
    Report,
    Stats,
    Step,
    Stop,
    decode_report,
    encode,
    pack_params,
    write_args,
)
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt

log = logging.getLogger("octavo")

RESTARTS = 3
"""How often the engine is started again within RESTART_WINDOW; after that the server stays up and says 503."""
RESTART_WINDOW = 600.0
"""Seconds."""
RESTART_DELAY = 1.0
"""Seconds by which each start within that time comes later than the one before: the first comes at once."""
CHECK_EVERY = 0.05
"""Seconds after which a process that has died is noticed."""
STOP_WITHIN = 2.0
"""Seconds that a process has to end by itself."""


class ProcessClient:
    """An EngineClient over a channel. Use `start()` before anything else, and `stop()` at the end.

    Args:
        args: the engine's options.
        on_outputs: called with what a step has given.
        on_death: called when the engine has died or is stopped, with the error for all who wait.
        on_stats: called with every report of the engine's numbers, and how often it was started again: each of its
            processes counts anew.
    """

    def __init__(
        self,
        args: EngineArgs,
        on_outputs: Callable[[list[Output]], None] = lambda outputs: None,
        on_death: Callable[[OctavoError], None] = lambda error: None,
        on_stats: Callable[[Stats, int], None] = lambda stats, restarts: None,
    ) -> None:
        self.args = args
        self.on_outputs, self.on_death, self.on_stats = on_outputs, on_death, on_stats
        self.name = "the engine"
        """For the log."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called if nobody reads what the engine says any more, for a reason that nobody foresaw."""
        self.failure: BaseException | None = None
        """That reason."""
        self._ready: Ready | None = None
        self.stats = Stats()
        self.state = "starting"
        """starting, running, restarting or dead."""
        self.process: subprocess.Popen[str] | None = None
        self._channel: Channel | None = None
        self._arrived = asyncio.Event()
        """Set when there may be something to read."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Which says when something comes; None where it is not asked to."""
        self._restarts: collections.deque[float] = collections.deque()
        self._starts = 0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def ready(self) -> Ready:
        assert self._ready is not None, "start() comes first"
        return self._ready

    def launch(self) -> None:
        """Start the process. Called before the event loop runs too, so that the model loads meanwhile.

        The process ends with the thread that calls this. Raises OSError where no process can be started.
        """
        self._drop_process()
        self._close_channel()
        self._starts += 1
        command = [sys.executable, "-m", "octavo.client.engine_process", str(os.getpid())]
        self._channel, self.process = Channel.to_process(command, stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died already; whoever waits for it sees that
            self.process.stdin.write(write_args(self.args) + "\n")
            self.process.stdin.flush()  # and it stays open: its end tells the process that this one has ended

    def _drop_process(self) -> None:
        """End what may be left of the last process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                with contextlib.suppress(OSError):
                    self.process.stdin.close()

    async def start(self) -> Ready:
        """Wait until the model is loaded. Raises OctavoError with the reason if it cannot be."""
        if self.process is None:
            self.launch()
        self._ready = await self._await_ready()
        self.state = "running"
        self._keeper = asyncio.create_task(self._keep())
        self._keeper.add_done_callback(self._ended)
        return self._ready

    async def _await_ready(self) -> Ready:
        self._watch()
        while not isinstance(report := await self._receive(), Ready):
            if isinstance(report, LoadFailed):
                raise OctavoError(report.error)
            if report is None:
                raise OctavoError("the engine's process ended while it was loading.")
        return report

    async def _receive(self) -> Report | None:
        """The next report that can be read; None if the process has died."""
        while (message := await self._next_message()) is not None:
            try:
                return decode_report(message)
            except (ValueError, UnicodeDecodeError) as error:  # msgspec's errors are ValueErrors
                log.error("a message of the engine could not be read: %s", error)
        return None

    async def _next_message(self) -> bytes | None:
        """The next message; None if the process has died."""
        assert self.process is not None
        assert self._channel is not None
        if (message := self._channel.take()) is not None:
            await asyncio.sleep(0)  # those whom the last one woke go first
            return message
        while (message := self._channel.take()) is None:
            if self.process.poll() is not None:
                while self._channel.fill():
                    pass
                return self._channel.take()
            self._arrived.clear()
            timer = asyncio.get_running_loop().call_later(CHECK_EVERY, self._arrived.set)
            await self._arrived.wait()
            timer.cancel()
        return message

    def _fill(self) -> None:
        """Read what has come, and let it be known."""
        assert self._channel is not None
        self._channel.fill()
        if self._channel.is_closed:  # whose socket could be read for ever
            self._unwatch()
        self._arrived.set()

    def _watch(self) -> None:
        """Have the event loop say when something comes."""
        assert self._channel is not None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._fill)

    def _unwatch(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._channel is not None:
            loop.remove_reader(self._channel.fileno())
            loop.remove_writer(self._channel.fileno())

    def _flush(self) -> None:
        """Send what the engine had no room for."""
        assert self._channel is not None
        with contextlib.suppress(ConnectionError):  # its end is found where its messages are read
            self._channel.flush()
        if not self._channel.has_unsent and self._loop is not None:
            self._loop.remove_writer(self._channel.fileno())

    def _close_channel(self) -> None:
        self._unwatch()
        if self._channel is not None:
            self._channel.close()

    async def _keep(self) -> None:
        """Hand out what comes; when the process dies, say so to all who wait, and start another."""
        while True:
            report = await self._receive()
            if report is None or isinstance(report, Died):
                self._mourn(report)
                if not await self._restart():
                    return
            elif isinstance(report, Step):
                self._take(report)
            else:
                log.error("unexpected message from the engine: %s", type(report).__name__)

    def _mourn(self, last_words: Died | None) -> None:
        """Tell all who wait that the engine has died."""
        assert self.process is not None
        if last_words is None:
            log.error("%s's process has died (exit status %s)", self.name, self.process.returncode)
        else:
            log.error("%s has died: %s", self.name, last_words.reason)
        self.state = "restarting"
        reason = "" if last_words is None else f": {last_words.reason.removesuffix('.')}"
        self.on_death(EngineDeadError(f"the engine died while this request was running{reason}. Try again."))

    def _take(self, report: Step) -> None:
        """Hand out a step. Whatever it holds, the next one is handed out too."""
        self._tell(report.stats)
        try:
            self.on_outputs(report.outputs)
        except Exception:
            log.exception("a step's outputs could not be handed out")

    def _tell(self, stats: Stats) -> None:
        self.stats = stats
        try:
            self.on_stats(stats, self._starts - 1)
        except Exception:
            log.exception("the engine's numbers could not be taken")

    def _ended(self, keeper: "asyncio.Task[None]") -> None:
        """Nobody reads the engine's messages any more. Unless this was meant, nobody must wait for one either."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        log.error("reading from the engine has failed", exc_info=error)
        self.state, self.failure = "dead", error
        self.on_death(EngineDeadError("the server lost its connection to the engine."))
        self.on_failure()

    async def _restart(self) -> bool:
        """Start the engine again, unless that was done too often; whether it runs."""
        while self._may_restart():
            self.state = "restarting"
            await asyncio.sleep(RESTART_DELAY * (len(self._restarts) - 1))
            try:
                self.launch()
                self._tell(Stats())
                self._ready = await self._await_ready()
            except (OctavoError, OSError) as error:
                log.error("%s could not be restarted: %s", self.name, error)
                continue
            self.state = "running"
            log.info("%s was restarted", self.name)
            return True
        self.state = "dead"
        log.error("%s died %d times in %d s and is not started again", self.name, RESTARTS + 1, RESTART_WINDOW)
        return False

    def _may_restart(self) -> bool:
        """Count one more start, if it may be made."""
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW:
            self._restarts.popleft()
        if len(self._restarts) >= RESTARTS:
            return False
        self._restarts.append(now)
        return True

    def _send(self, command: Command) -> None:
        """Raises EngineDeadError where nobody is at the other end, rather than wait for somebody.

        Raises InvalidRequestError for a command with a value that no message can hold, such as half a character.
        """
        assert self._channel is not None
        try:
            message = encode(command)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequestError(
                f"the request holds a value that cannot be sent to the engine: {error}"
            ) from error
        try:
            self._channel.send(message)
        except ConnectionError as error:
            raise EngineDeadError("the engine is not running. Try again in a moment.") from error
        if self._channel.has_unsent and self._loop is not None:
            self._loop.add_writer(self._channel.fileno(), self._flush)

    def add(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        self._check_running()
        packed, is_sampling = pack_params(params), isinstance(params, SamplingParams)
        self._send(Add(request_id, prompt, packed if is_sampling else None, None if is_sampling else packed, priority))

    def _check_running(self) -> None:
        if self.state != "running":
            raise EngineDeadError(f"the engine is {self.state}. Try again in a moment.")

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        self._check_running()
        self._send(LoadAdapter(request_id, adapter))

    def drop_adapter(self, adapter: AdapterRef) -> None:
        self._tell_engine(DropAdapter(adapter))

    def finish(self, request_id: str, index: int) -> None:
        self._tell_engine(Finish(request_id, index))

    def abort(self, request_id: str) -> None:
        self._tell_engine(Abort([request_id]))

    def _tell_engine(self, command: Command) -> None:
        """Send what an engine that does not run need not know."""
        if self.state == "running":
            with contextlib.suppress(EngineDeadError):
                self._send(command)

    async def stop(self) -> None:
        """End the engine's process: politely where it works, at once where it still loads."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self.on_death(EngineDeadError("the server is shutting down."))
        if self.state == "running" and self.process is not None and self.process.poll() is None:
            self._tell_engine(Stop())
            deadline = time.monotonic() + STOP_WITHIN
            while self.process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)  # no thread waits: as the interpreter ends, none can be started
        self._drop_process()
        self.state = "dead"
        self._close_channel()
