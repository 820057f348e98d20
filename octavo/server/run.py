"""Run a server until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.server.options import ServerOptions
from octavo.server.service import Service

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("octavo")


def serve(args: EngineArgs, options: ServerOptions) -> None:
    """Serve the model of `args`. Raises OctavoError for an address in use or a model that does not load."""
    listener = _listen(options)
    service = Service(args, options)
    service.client.launch()  # the model loads while this process imports what it needs
    if sys.platform != "win32":
        import uvloop

        uvloop.run(_serve(service, options, listener))
    else:
        asyncio.run(_serve(service, options, listener))


def _listen(options: ServerOptions) -> socket.socket:
    """Taken before the model is loaded: an address in use is said at once."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen at {options.host}:{options.port} ({error}). Choose another --port or --host."
        ) from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _server(config: "uvicorn.Config") -> "uvicorn.Server":
    """A uvicorn server that leaves signals to us: its own way ends this process before the engine is stopped."""
    import uvicorn

    class Server(uvicorn.Server):
        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            return contextlib.nullcontext()

    return Server(config)


async def _serve(service: Service, options: ServerOptions, listener: socket.socket) -> None:
    import uvicorn

    from octavo.server.app import create_app
    from octavo.server.framing import StrictProtocol

    try:
        await service.start()
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            http=StrictProtocol,
            ws="none",
            lifespan="off",
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            root_path=options.root_path,
            timeout_graceful_shutdown=int(options.shutdown_timeout),
        )
        server = _server(config)
        scheme, port = "https" if options.ssl_certfile else "http", listener.getsockname()[1]
        log.info("serving %s at %s://%s:%d", service.model_name, scheme, options.host, port)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
        await server.serve(sockets=[listener])
    finally:
        await service.stop()
