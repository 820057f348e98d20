"""The engine's own process. It lives no longer than the process that started it, whatever happens to that one.

ProcessClient starts it: `python -m octavo.client.engine_process PARENT CHANNEL`, with EngineArgs as a line of JSON on
standard input, which stays open as long as the parent lives.

Nothing here imports the engine before this process is sure to end with its parent: that takes seconds, most of them
deep in libraries that let no thread of Python run.
"""

import contextlib
import logging
import os
import signal
import sys

from octavo.client.channel import Channel
from octavo.engine.messages import Died, LoadFailed, Report, encode, read_args
from octavo.errors import OctavoError
from octavo.logs import log_to_stderr
from octavo.parent_process import end_with_parent, settle

log = logging.getLogger("octavo")

LAST_WORDS = 1000
"""Milliseconds in which the parent takes the reason why this process ends."""


def main(parent: int, number: str) -> int:
    """Args: the process that this one ends with, and the channel to it, as `Channel.inherited` takes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that serves; it says when to stop
    log_to_stderr()
    options = sys.stdin.readline()
    end_with_parent(parent)
    channel = Channel.inherited(number)
    try:
        from octavo.client.engine_server import EngineServer
        from octavo.launch import launch_engine

        server = EngineServer(launch_engine(read_args(options)), channel)
    except Exception as error:
        _tell(channel, LoadFailed(_reason(error)))
        channel.close(LAST_WORDS)
        return 1
    _tell(channel, server.engine.ready)
    settle()
    try:
        server.run()
    except BaseException as error:
        log.exception("the engine has failed")
        _tell(channel, Died(_reason(error)))
        with contextlib.suppress(Exception):
            server.engine.executor.close()  # what it has started ends, and no file of it stays
        channel.close(LAST_WORDS)
        os._exit(1)  # at once, whatever else would still have to end
    server.engine.executor.close()
    channel.close()
    return 0


def _tell(channel: Channel, report: Report) -> None:
    """Say something to the parent. If it has gone, this process is about to end with it."""
    with contextlib.suppress(ConnectionError):
        channel.send(encode(report))


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
