"""For processes of a server: they may not outlive the one that started them, nor pause once they serve."""

import contextlib
import ctypes
import gc
import os
import platform
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when the thread that started it ends (prctl(2))."""


SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}
"""Linux's number of sched_setattr(2), which Python has no function for."""
RESET_ON_FORK = 1
SHORTEST_SLICE = 100_000
"""Nanoseconds; the least that Linux takes."""


class _Attributes(ctypes.Structure):
    """What sched_setattr(2) is given."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


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


def wake_at_once() -> None:
    """A thread of this process that is woken gets a processor at once, though others compute on all of them.

    An engine computes without a pause, and Linux lets who computes go on for some milliseconds before one that was
    woken has its turn; one who asks for short turns need not wait (from Linux 6.12 on, before which this does
    nothing). It gets no larger share. Threads that are there by now are meant, and no process that these start.
    """
    number = SET_ATTRIBUTES.get(platform.machine()) if sys.platform == "linux" else None
    if number is None:
        return
    system = ctypes.CDLL(None)
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(OSError):  # the thread has ended
            if os.sched_getscheduler(thread) != os.SCHED_OTHER:
                continue
            nice = os.getpriority(os.PRIO_PROCESS, thread)
            wanted = _Attributes(ctypes.sizeof(_Attributes), os.SCHED_OTHER, RESET_ON_FORK, nice, 0, SHORTEST_SLICE)
            system.syscall(number, thread, ctypes.byref(wanted), 0)
