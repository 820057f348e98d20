"""Run a server until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from octavo.config import EngineArgs
from octavo.errors import OctavoError
from octavo.parent_process import settle, wake_at_once
from octavo.server.listening import address, listen, refresh_certificate
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service
from octavo.server.stats_log import StatsLog

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("octavo")

ANSWER_WITHIN = 5
"""Seconds in which, once the engine has been ended, all who waited for it have their answers."""


def serve(args: EngineArgs, options: ServerOptions) -> None:
    """Serve the model of `args`. Raises OctavoError for an address in use or a model that does not load."""
    listener = listen(options)
    service = Service(args, options)
    stop_signal = StopSignal()
    service.client.launch()  # the model loads while this process imports what it needs
    if sys.platform != "win32":
        import uvloop

        uvloop.run(_serve(service, options, listener, stop_signal))
    else:
        asyncio.run(_serve(service, options, listener, stop_signal))


class StopSignal:
    """What SIGTERM and SIGINT do: `act`, at once if one has come already."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._act: Callable[[int], object] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """A signal has come."""
        self.number = number
        if self._act is not None:
            self._act(number)

    def then(self, act: Callable[[int], object]) -> None:
        """From now on `act` is what a signal does. Called within the event loop."""
        self._act = act
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows has no such handlers; the plain ones do
                asyncio.get_running_loop().add_signal_handler(number, self.receive, number)
        if self.number is not None:
            act(self.number)


def _server(config: "uvicorn.Config") -> "uvicorn.Server":
    """A uvicorn server that leaves signals to us: its own way ends this process before the engine is stopped."""
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            return contextlib.nullcontext()

    return Server(config)


async def _start(service: Service, stop_signal: StopSignal) -> bool:
    """Wait until the service takes requests; False if it is told to end before."""
    starting = asyncio.create_task(service.start())
    stop_signal.then(lambda number: starting.cancel())
    try:
        await starting
    except asyncio.CancelledError:
        if stop_signal.number is None:
            raise
    return stop_signal.number is None


async def _serve(service: Service, options: ServerOptions, listener: socket.socket, stop_signal: StopSignal) -> None:
    import uvicorn

    from octavo.server.app import create_app
    from octavo.server.framing import StrictProtocol

    beside: list[asyncio.Task[None]] = []
    settle()  # while the model loads
    try:
        if not await _start(service, stop_signal):
            await service.stop()
            sys.stderr.flush()
            os._exit(0)  # threads that still load the tokenizer are not waited for
        config = uvicorn.Config(
            create_app(service),
            log_level=options.uvicorn_log_level,
            access_log=False,
            http=StrictProtocol,
            ws="none",
            lifespan="off",
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            ssl_ca_certs=options.ssl_ca_certs,
            ssl_cert_reqs=options.ssl_cert_reqs,
            ssl_ciphers=options.ssl_ciphers or "TLSv1",  # uvicorn's own
            root_path=options.root_path,
            timeout_graceful_shutdown=int(options.shutdown_timeout) + ANSWER_WITHIN,
        )
        server = _server(config)
        gc.freeze()  # the application too
        wake_at_once()  # an answer's next token need not wait for the step after it
        log.info("serving %s at %s", service.model_name, address(options, listener))

        def end(number: int) -> None:
            server.handle_exit(number, None)
            service.begin_stop()  # who still waits at its end is told so

        stop_signal.then(end)
        service.client.on_failure = lambda: setattr(server, "should_exit", True)
        if not options.disable_log_stats and service.metrics is not None:
            beside.append(asyncio.create_task(StatsLog(service.metrics).run()))
        if options.enable_ssl_refresh:
            beside.append(asyncio.create_task(refresh_certificate(config, options)))
        await server.serve(sockets=[listener])
        if service.client.failure is not None:
            raise OctavoError(f"the server has lost its engine: {service.client.failure!r}")
    finally:
        for task in beside:
            task.cancel()
        if options.uds is not None:
            with contextlib.suppress(OSError):
                os.unlink(options.uds)
        await service.stop()
