"""How many threads the core computes with: one a processor core that this process may use."""

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def default_threads(processes: int = 1) -> int:
    """Cores of the affinity mask, hyperthreads not counted, and no more than the control group's share of time.

    Args:
        processes: among how many they are divided.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not on this system
        return max(1, (os.cpu_count() or 1) // processes)
    cores = {siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()) // processes)


def processors() -> int:
    """Those of the machine, as far as the control group grants their time: for all processes together."""
    return max(1, min(os.cpu_count() or 1, _quota()))


def siblings(cpu: int) -> str:
    """The processors that are threads of the same core as `cpu`, as Linux writes them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/threadsiblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Processors' worth of time that the control group grants; many where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group, or no limit ("max")
        return 1 << 16
