"""Where the server listens, and with which certificate."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.server.server_options import ServerOptions

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger("octavo")

REFRESH = 5.0
"""Seconds between two looks at a certificate's files."""


def listen(options: ServerOptions) -> socket.socket:
    """Taken before the model is loaded: an address in use is said at once. Raises ConfigError for it."""
    if options.uds is not None:
        return _listen_at_path(options.uds)
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


def _listen_at_path(path: str) -> socket.socket:
    """A Unix domain socket. One that an earlier server has left there is taken away, and nothing else is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other, contextlib.suppress(ConnectionError):
                if not stat.S_ISSOCK(os.lstat(path).st_mode):
                    raise OSError("a file is there")
                other.connect(path)
                raise OSError("another server listens there")
            os.unlink(path)
        listener.bind(path)
    except OSError as error:
        raise ConfigError(f"cannot listen at {path} ({error}). Choose another --uds.") from error
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def address(options: ServerOptions, listener: socket.socket) -> str:
    """Where clients find the server."""
    if options.uds is not None:
        return f"unix:{options.uds}"
    scheme = "https" if options.ssl_certfile else "http"
    return f"{scheme}://{options.host}:{listener.getsockname()[1]}"


async def refresh_certificate(config: "uvicorn.Config", options: ServerOptions) -> None:
    """Read the certificate again whenever its files have changed, for connections to come."""
    names = [name for name in (options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs) if name]

    def stamp() -> list[int]:
        return [os.stat(name).st_mtime_ns for name in names]

    known = stamp()
    while True:
        await asyncio.sleep(REFRESH)
        try:
            if (now := stamp()) != known and config.ssl is not None:
                config.ssl.load_cert_chain(str(options.ssl_certfile), options.ssl_keyfile)
                if options.ssl_ca_certs:
                    config.ssl.load_verify_locations(options.ssl_ca_certs)
                known = now
                log.info("the certificate was read again")
        except OSError as error:  # half of it is written: the next look finds it whole
            log.warning("the certificate cannot be read again: %s", error)
