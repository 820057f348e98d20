"""The engine at its end of the socket: commands in, steps out. It never waits for HTTP, JSON or text."""

import logging
from typing import Any

import zmq

from octavo.engine.engine import Engine, FailedRequest
from octavo.errors import InvalidRequestError, failure
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, RequestOutputKind
from octavo.server.messages import (
    Abort,
    Add,
    Command,
    Failed,
    Output,
    Pooled,
    Ready,
    Stats,
    Step,
    Stop,
    Tokens,
    decode_command,
    encode,
    pack_logprobs,
    request_of,
    unpack_sampling,
)

log = logging.getLogger("octavo")

READ_PER_STEP = 256
"""Most messages that are read between two steps."""
ADDED_PER_STEP = 64
"""Sequences that are added between two steps, and what the last request has more: a crowd that arrives at once does
not hold up those who run."""


class EngineServer:
    """An engine at one end of a socket. What one request's messages hold, and whatever they cause, ends no other."""

    def __init__(self, engine: Engine, socket: "zmq.Socket[bytes]") -> None:
        self.engine, self.socket = engine, socket
        self.stats = Stats()
        self._arrived: dict[str, Add] = {}
        """Requests that the engine does not know yet, in their order."""

    def ready(self) -> Ready:
        engine, shape = self.engine, self.engine.executor.shape
        encoder = engine.checker.encoder
        return Ready(
            task=engine.info.task,
            vocab_size=engine.info.vocab_size,
            max_model_len=engine.max_model_len,
            eos_token_ids=sorted(engine.info.eos_token_ids),
            generation_config={k: v for k, v in engine.info.generation_config.items() if isinstance(v, (int, float))},
            decoder_start_token_id=None if encoder is None else encoder.start_token_id,
            has_encoder=encoder is not None,
            num_scores=engine.info.num_scores,
            labels=engine.info.labels,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
        )

    def run(self) -> None:
        """Serve until told to stop."""
        while True:
            outputs: list[Output] = []
            aborted = False
            for command in self._read(outputs):
                if isinstance(command, Stop):
                    return
                if isinstance(command, Abort):
                    self._abort(command)
                    aborted = True  # which changes the numbers without giving anything
                elif command.request_id in self._arrived:
                    outputs.append(Failed(command.request_id, "this request id is already in use.", invalid=True))
                else:
                    self._arrived[command.request_id] = command
            outputs += self._add_some()
            outputs += self._step()
            if outputs or aborted:
                self._send(outputs)

    def _read(self, refused: list[Output]) -> list[Command]:
        """Commands that have come; waits for one where there is nothing else to do."""
        commands: list[Command] = []
        busy = self.engine.has_work or bool(self._arrived)
        while len(commands) + len(refused) < READ_PER_STEP:
            if not self.socket.poll(0 if busy or commands or refused else None):
                break
            message = self.socket.recv()
            try:
                commands.append(decode_command(message))
            except Exception as error:
                log.warning("a message that cannot be read: %s", error)
                if (request_id := request_of(message)) is not None:
                    refused.append(Failed(request_id, f"the engine cannot read this request: {error}", invalid=True))
        return commands

    def _abort(self, command: Abort) -> None:
        for request_id in command.request_ids:
            self._arrived.pop(request_id, None)
        self.engine.abort(command.request_ids)

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
        if command.pooling is not None:
            params: Any = PoolingParams(**command.pooling)
            count = 1
        else:
            params = unpack_sampling(command.sampling or {})
            params.output_kind, params.detokenize = RequestOutputKind.DELTA, False
            count = params.num_sequences
        self.engine.add_request(command.request_id, command.prompt, params, command.priority)
        self.stats.prompt_tokens += len(command.prompt.token_ids)
        return count

    def _send(self, outputs: list[Output]) -> None:
        """Tell what a step gave, and how the engine is now."""
        self._count()
        try:
            message = encode(Step(outputs, self.stats))
        except BaseException as error:
            failure(error)
            message = encode(Step([self._sendable(output) for output in outputs], self.stats))
        self.socket.send(message)

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
        outputs: list[Output] = []
        for output in self.engine.step():
            try:
                outputs += self._messages(output)
            except BaseException as error:
                self.engine.abort([output.request_id])
                outputs.append(Failed(output.request_id, failure(error), invalid=False))
        return outputs

    def _messages(self, output: RequestOutput | PoolingRequestOutput[PoolingOutput] | FailedRequest) -> list[Output]:
        if isinstance(output, FailedRequest):
            return [Failed(output.request_id, output.error, output.invalid)]
        if isinstance(output, PoolingRequestOutput):
            data = output.outputs.data
            self.stats.cached_tokens += output.num_cached_tokens
            return [Pooled(output.request_id, data.shape, data.tobytes(), output.num_cached_tokens)]
        prompt_logprobs = None
        if output.prompt_logprobs is not None:
            prompt_logprobs = [None if p is None else pack_logprobs(p) for p in output.prompt_logprobs]
        if output.finished:
            self.stats.cached_tokens += output.num_cached_tokens or 0
        return [
            Tokens(
                output.request_id,
                c.index,
                list(c.token_ids),
                None if c.logprobs is None else [pack_logprobs(entries) for entries in c.logprobs],
                c.finish_reason,
                c.stop_reason,
                output.num_cached_tokens,
                prompt_logprobs,
                c.is_invalid,
            )
            for c in output.outputs
        ]

    def _count(self) -> None:
        scheduler, pool = self.engine.scheduler, self.engine.cache.pool
        self.stats.running, self.stats.waiting = len(scheduler.running), scheduler.num_waiting
        self.stats.used_blocks = pool.num_blocks - pool.num_free
        self.stats.preemptions = scheduler.num_preemptions
