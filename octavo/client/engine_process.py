"""The engine's own process. It lives no longer than the process that started it, whatever happens to that one.

ProcessClient starts it: `python -m octavo.client.engine_process ADDRESS PARENT`, with EngineArgs as a line of JSON on
standard input, which stays open as long as the parent lives.

Nothing here imports the engine before this process is sure to end with its parent: that takes seconds, most of them
deep in libraries that let no thread of Python run.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from octavo.engine.messages import Died, LoadFailed, encode, read_args
from octavo.errors import OctavoError
from octavo.logs import log_to_stderr
from octavo.parent_process import end_with_parent, is_orphan

log = logging.getLogger("octavo")

LOOK_UP_EVERY = 100
"""Milliseconds after which a process that waits for its parent looks whether it is still there."""
LAST_WORDS = 1000
"""Milliseconds in which the parent takes the reason why this process ends."""


def connect(address: str, parent: int) -> "tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]] | None":
    """A context, and a socket that is connected; None if the parent has ended.

    The socket's folder is removed as soon as both ends hold the connection, so that nobody needs to do it later.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED)
    try:
        socket.connect(address)
        while not monitor.poll(LOOK_UP_EVERY):
            if is_orphan(parent):
                return None
        recv_monitor_message(monitor)
        return context, socket
    finally:
        socket.disable_monitor()
        shutil.rmtree(Path(address.removeprefix("ipc://")).parent, ignore_errors=True)


def main(address: str, parent: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that serves; it says when to stop
    log_to_stderr()
    options = sys.stdin.readline()
    connection = connect(address, parent)
    end_with_parent(parent)
    if connection is None:
        return 1
    context, socket = connection
    try:
        from octavo.client.engine_server import EngineServer
        from octavo.launch import launch_engine

        server = EngineServer(launch_engine(read_args(options)), socket)
    except Exception as error:
        socket.send(encode(LoadFailed(_reason(error))))
        context.destroy(linger=2000)
        return 1
    socket.send(encode(server.engine.ready))
    try:
        server.run()
    except BaseException as error:
        log.exception("the engine has failed")
        socket.send(encode(Died(_reason(error))))
        with contextlib.suppress(Exception):
            server.engine.executor.close()  # what it has started ends, and no file of it stays
        context.destroy(linger=LAST_WORDS)
        os._exit(1)  # at once, whatever else would still have to end
    server.engine.executor.close()
    context.destroy(linger=0)
    return 0


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
