"""How many threads the core computes with: one a processor core that this process may use."""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_processes = {"cores": 1, "time": 1}
"""By which this process's cores, and its control group's time, are divided."""


def divide(cores: int, time: int) -> None:
    """Have `default_threads` leave their share to others: to how many the cores belong, to how many the time."""
    _processes.update(cores=cores, time=time)


def default_threads() -> int:
    """Cores of the affinity mask, hyperthreads not counted, and no more than the control group's share of time, each
    divided as `divide` has said.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return max(1, (os.cpu_count() or 1) // _processes["cores"])
    cores = {siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores) // _processes["cores"], _quota() // _processes["time"]))


def processors() -> int:
    """Those of the machine, as far as the control group grants their time: for all processes together."""
    return max(1, min(os.cpu_count() or 1, _quota()))


def siblings(cpu: int) -> str:
    """The processors that are threads of the same core as `cpu`, as Linux writes them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Processors' worth of time that the control group grants; many where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group, or no limit ("max")
        return 1 << 16
