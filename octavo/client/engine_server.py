"""The engine at its end of the channel: commands in, steps out. It never waits for HTTP, JSON or text."""

import contextlib
import logging

from octavo.client.channel import Channel
from octavo.engine.engine import Engine
from octavo.engine.messages import (
    Abort,
    Add,
    Command,
    DropAdapter,
    Failed,
    Finish,
    LoadAdapter,
    Output,
    Pooled,
    Stats,
    Step,
    Stop,
    Tokens,
    decode_command,
    encode,
    request_of,
)
from octavo.errors import InvalidRequestError, failure
from octavo.params import SamplingParams

log = logging.getLogger("octavo")

READ_PER_STEP = 256
"""Most messages that are read between two steps."""
ADDED_PER_STEP = 64
"""Sequences that are added between two steps, and what the last request has more: a crowd that arrives at once does
not hold up those who run."""


CHECK_EVERY = 1000
"""Milliseconds after which an idle engine looks whether what computes for it is still there."""


class EngineServer:
    """An engine at one end of a channel. What one request's messages hold, and whatever they cause, ends no other."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self.engine, self.channel = engine, channel
        self.stats = Stats()
        self._arrived: dict[str, Add] = {}
        """Requests that the engine does not know yet, in their order."""

    def run(self) -> None:
        """Serve until told to stop."""
        while True:
            outputs: list[Output] = []
            aborted = False
            for command in self._read(outputs):
                if isinstance(command, Stop):
                    return
                if isinstance(command, Finish):
                    self.engine.finish(command.request_id, command.index)
                elif isinstance(command, Abort):
                    outputs += self._abort(command)
                    aborted = True  # which may change the numbers without giving anything
                elif isinstance(command, LoadAdapter):
                    outputs += self._load_adapter(command)
                elif isinstance(command, DropAdapter):
                    self.engine.drop_adapter(command.adapter)
                elif command.request_id in self._arrived:
                    outputs.append(Failed(command.request_id, "this request id is already in use.", invalid=True))
                else:
                    self._arrived[command.request_id] = command
            outputs += self._add_some()
            outputs += self._step()
            if outputs or aborted:
                self._send(outputs)

    def _read(self, refused: list[Output]) -> list[Command]:
        """Commands that have come; waits for one where there is nothing else to do. Stop where nobody is left to come.

        Raises EngineDeadError where the model's processes have ended meanwhile.
        """
        commands: list[Command] = []
        busy = self.engine.has_work or bool(self._arrived)
        while len(commands) + len(refused) < READ_PER_STEP:
            try:
                self.channel.flush()
                message = self.channel.receive()
            except ConnectionError:
                return [*commands, Stop()]
            if message is None:
                if busy or commands or refused:
                    break
                if not self.channel.poll(CHECK_EVERY):
                    self.engine.executor.check()
                continue
            try:
                commands.append(decode_command(message))
            except Exception as error:
                log.warning("a message could not be read: %s", error)
                if (request_id := request_of(message)) is not None:
                    refused.append(Failed(request_id, f"the engine cannot read this request: {error}", invalid=True))
        return commands

    def _abort(self, command: Abort) -> list[Output]:
        """End requests, also those that the engine does not know yet; the last messages of their sequences."""
        outputs: list[Output] = []
        for request_id in command.request_ids:
            if (add := self._arrived.pop(request_id, None)) is not None:
                outputs += _aborted(add)
        return outputs + self.engine.abort(command.request_ids)

    def _load_adapter(self, command: LoadAdapter) -> list[Output]:
        try:
            self.engine.load_adapter(command.request_id, command.adapter)
        except BaseException as error:
            return [Failed(command.request_id, failure(error), isinstance(error, InvalidRequestError))]
        return []

    def _add_some(self) -> list[Output]:
        """Hand the engine requests that have arrived; what it refuses."""
        refused: list[Output] = []
        added = 0
        while self._arrived and added < ADDED_PER_STEP:
            command = self._arrived.pop(next(iter(self._arrived)))
            added += 1
            try:
                added += self._add(command) - 1
            except BaseException as error:
                invalid = isinstance(error, (InvalidRequestError, TypeError))
                refused.append(Failed(command.request_id, failure(error), invalid))
        return refused

    def _add(self, command: Add) -> int:
        """Add a request; how many sequences it has."""
        params = command.params()
        self.engine.add_request(command.request_id, command.prompt, params, command.priority)
        self.stats.prompt_tokens += len(command.prompt.token_ids)
        return params.num_sequences if isinstance(params, SamplingParams) else 1

    def _send(self, outputs: list[Output]) -> None:
        """Tell what a step gave, and how the engine is now."""
        self._count()
        try:
            message = encode(Step(outputs, self.stats))
        except BaseException as error:
            failure(error)
            message = encode(Step([self._sendable(output) for output in outputs], self.stats))
        with contextlib.suppress(ConnectionError):  # which the next look for commands finds too
            self.channel.send(message)

    def _sendable(self, output: Output) -> Output:
        """The output, or the failure of its request where it cannot be written."""
        try:
            encode(output)
        except BaseException as error:
            self.engine.abort([output.request_id])
            return Failed(output.request_id, f"the answer cannot be sent: {failure(error)}", invalid=False)
        return output

    def _step(self) -> list[Output]:
        if not self.engine.has_work:
            return []
        self.stats.steps += 1
        outputs = self.engine.step()
        self.stats.cached_tokens += sum(
            output.num_cached
            for output in outputs
            if isinstance(output, Pooled)
            or (isinstance(output, Tokens) and output.index == 0 and output.scheduled_time is not None)
        )
        return outputs

    def _count(self) -> None:
        scheduler, pool = self.engine.scheduler, self.engine.cache.pool
        self.stats.running, self.stats.waiting = len(scheduler.running), scheduler.num_waiting
        self.stats.used_blocks = pool.num_blocks - pool.num_free
        self.stats.preemptions = scheduler.num_preemptions
        if (guessed := self.engine.speculation) is not None:
            self.stats.num_drafts, self.stats.num_draft_tokens = guessed.num_drafts, guessed.num_draft_tokens
            self.stats.accepted_by_place = guessed.accepted_by_place
        if (offload := self.engine.offload) is not None:
            self.stats.outside_queries, self.stats.outside_hits = offload.queries, offload.hits
            self.stats.stored_bytes, self.stats.loaded_bytes = offload.stored_bytes, offload.loaded_bytes
        self.stats.running_adapters, self.stats.waiting_adapters = self.engine.adapter_names()
        self.stats.num_media_items = scheduler.features.num_computed
        self.stats.feature_hits, self.stats.media_seconds = scheduler.features.num_hits, self.engine.media_seconds


def _aborted(command: Add) -> list[Output]:
    """What is said of a request that is aborted before it is added. A pooling request says nothing."""
    try:
        params = command.params()
    except BaseException as error:
        return [Failed(command.request_id, failure(error), invalid=True)]
    if not isinstance(params, SamplingParams):
        return []
    return [Tokens(command.request_id, index, [], finish_reason="abort") for index in range(params.num_sequences)]
