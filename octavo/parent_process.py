"""For processes of a server: they may not outlive the one that started them, nor pause once they serve."""

import ctypes
import gc
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when the thread that started it ends (prctl(2))."""


def is_orphan(parent: int) -> bool:
    """Whether the process that started this one has ended. Windows gives orphans no new parent."""
    return sys.platform != "win32" and os.getppid() != parent


def end_with_parent(parent: int, with_thread: bool = True) -> None:
    """From here on this process ends when `parent` does: by the kernel where it can, else when our input closes.

    The kernel looks at the thread that has started this process: `with_thread=False` where it may end earlier.
    """
    if sys.platform == "linux" and with_thread:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    if is_orphan(parent):
        os._exit(1)


def settle() -> None:
    """What is loaded by now stays: Python looks for garbage in it no more.

    To look through all objects of the libraries took the engine 0.1 s each time, in which no step was computed.
    """
    gc.collect()
    gc.freeze()
