"""The engine's own process. It lives no longer than the process that started it, whatever happens to that one.

EngineClient starts it: `python -m octavo.server.engine_process ADDRESS PARENT`, with EngineArgs as a line of JSON on
standard input, which stays open as long as the parent lives.

Nothing here imports the engine before this process is sure to end with its parent: that takes seconds, most of them
deep in libraries that let no thread of Python run.
"""

import ctypes
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from octavo.errors import OctavoError
from octavo.server.messages import LoadFailed, encode, read_args

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when the thread that started it ends (prctl(2))."""
LOOK_UP_EVERY = 100
"""Milliseconds after which a process that waits for its parent looks whether it is still there."""


def is_orphan(parent: int) -> bool:
    """Whether the process that started this one has ended. Windows gives orphans no new parent."""
    return sys.platform != "win32" and os.getppid() != parent


def end_with_parent(parent: int) -> None:
    """From here on this process ends when `parent` does: by the kernel where it can, else when our input closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    if is_orphan(parent):
        os._exit(1)


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
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="octavo: %(message)s")
    options = sys.stdin.readline()
    connection = connect(address, parent)
    end_with_parent(parent)
    if connection is None:
        return 1
    context, socket = connection
    try:
        from octavo.launch import launch_engine
        from octavo.server.engine_server import EngineServer

        server = EngineServer(launch_engine(read_args(options)), socket)
        ready = server.ready()
    except Exception as error:
        said = str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"
        socket.send(encode(LoadFailed(said)))
        context.destroy(linger=2000)
        return 1
    socket.send(encode(ready))
    server.run()
    context.destroy(linger=0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
