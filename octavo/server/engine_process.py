"""The engine's own process: commands in, steps out. It never waits for HTTP, JSON or text.

EngineClient starts it: `python -m octavo.server.engine_process ADDRESS`, with EngineArgs as JSON on standard input.
"""

import logging
import os
import signal
import sys
from typing import Any

import numpy as np
import zmq

from octavo.engine.engine import Engine, FailedRequest
from octavo.errors import OctavoError
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, RequestOutputKind
from octavo.server.messages import (
    Abort,
    Add,
    Failed,
    LoadFailed,
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
    read_args,
    unpack_sampling,
)

log = logging.getLogger("octavo")

LOOK_UP_EVERY = 1000
"""Milliseconds after which an idle engine looks whether the process that started it is still there."""


class EngineServer:
    """An engine at one end of a socket."""

    def __init__(self, engine: Engine, socket: "zmq.Socket[bytes]") -> None:
        self.engine, self.socket = engine, socket
        self.parent = os.getppid()
        self.stats = Stats()

    def ready(self) -> Ready:
        engine, shape = self.engine, self.engine.runner.shape
        encoder = engine.checker.encoder
        return Ready(
            task=engine.task,
            vocab_size=engine.vocab_size,
            max_model_len=engine.max_model_len,
            eos_token_ids=sorted(engine.eos_token_ids),
            generation_config={k: v for k, v in engine.generation_config.items() if isinstance(v, (int, float))},
            decoder_start_token_id=None if encoder is None else encoder.start_token_id,
            has_encoder=encoder is not None,
            num_scores=engine.pooling.num_scores,
            labels=engine.labels,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
        )

    def run(self) -> None:
        """Serve until told to stop, or until the other process is gone."""
        while True:
            refused: list[Output] = []
            aborted = False
            while self.socket.poll(0 if self.engine.has_work or refused or aborted else LOOK_UP_EVERY):
                command = decode_command(self.socket.recv())
                if isinstance(command, Stop):
                    return
                if isinstance(command, Abort):
                    self.engine.abort(command.request_ids)
                    aborted = True
                else:
                    refused += self._add(command)
            if os.getppid() != self.parent:
                return
            outputs = refused + self._step()
            if outputs or aborted:  # an abort changes the numbers without giving anything
                self._count()
                self.socket.send(encode(Step(outputs, self.stats)))

    def _add(self, command: Add) -> list[Output]:
        try:
            if command.pooling is not None:
                params: Any = PoolingParams(**command.pooling)
            else:
                params = unpack_sampling(command.sampling or {})
                params.output_kind, params.detokenize = RequestOutputKind.DELTA, False
            self.engine.add_request(command.request_id, command.prompt, params, command.priority)
        except (OctavoError, TypeError) as error:
            return [Failed(command.request_id, str(error), invalid=True)]
        self.stats.prompt_tokens += len(command.prompt.token_ids)
        return []

    def _step(self) -> list[Output]:
        if not self.engine.has_work:
            return []
        self.stats.steps += 1
        outputs: list[Output] = []
        for output in self.engine.step():
            outputs += self._messages(output)
        return outputs

    def _messages(self, output: RequestOutput | PoolingRequestOutput[PoolingOutput] | FailedRequest) -> list[Output]:
        if isinstance(output, FailedRequest):
            return [Failed(output.request_id, output.error, invalid=False)]
        if isinstance(output, PoolingRequestOutput):
            data = output.outputs.data.numpy().astype(np.float32)
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
            )
            for c in output.outputs
        ]

    def _count(self) -> None:
        scheduler, pool = self.engine.scheduler, self.engine.cache.pool
        self.stats.running, self.stats.waiting = len(scheduler.running), scheduler.num_waiting
        self.stats.used_blocks = pool.num_blocks - pool.num_free
        self.stats.cached_blocks, self.stats.preemptions = pool.num_cached, scheduler.num_preemptions


def main(address: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that serves; it says when to stop
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="octavo: %(message)s")
    args = read_args(sys.stdin.read())
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.connect(address)
    try:
        server = EngineServer(Engine(args), socket)
    except Exception as error:
        said = str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"
        socket.send(encode(LoadFailed(said)))
        context.destroy(linger=2000)
        return 1
    socket.send(encode(server.ready()))
    server.run()
    context.destroy(linger=0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
