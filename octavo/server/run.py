"""Run a server until it is told to stop."""

import asyncio
import logging
import socket
import sys

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.server.options import ServerOptions
from octavo.server.service import Service

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


async def _serve(service: Service, options: ServerOptions, listener: socket.socket) -> None:
    import uvicorn

    from octavo.server.app import create_app

    try:
        await service.start()
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            http="httptools",
            lifespan="off",
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            root_path=options.root_path,
            timeout_graceful_shutdown=int(options.shutdown_timeout),
        )
        server = uvicorn.Server(config)
        scheme, port = "https" if options.ssl_certfile else "http", listener.getsockname()[1]
        log.info("serving %s at %s://%s:%d", service.model_name, scheme, options.host, port)
        await server.serve(sockets=[listener])
    finally:
        await service.stop()
