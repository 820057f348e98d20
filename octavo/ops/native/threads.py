"""How many threads the core computes with, one a processor core that this process may use, and on which NUMA nodes."""

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
_CPU_LIST = re.compile(r"(\d+)(?:-(\d+))?")
_processes = {"cores": 1, "time": 1}
"""By which this process's cores, and its control group's time, are divided."""
_binds = [True]
"""Whether threads are bound to nodes, as the last to ask has said."""


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


def cores(cpus: Sequence[int]) -> list[list[int]]:
    """Processors by the core whose threads they are."""
    found = dict[str, list[int]]()
    for cpu in cpus:
        found.setdefault(siblings(cpu), []).append(cpu)
    return list(found.values())


def parse_cpus(text: str) -> list[int]:
    """The processors of a list as Linux writes them: 0-3,8. Raises ValueError."""
    found = set[int]()
    for part in text.split(",") if text else []:
        match = _CPU_LIST.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 1 << 16:
            raise ValueError(part)
        found.update(range(first, last + 1))
    if not found:
        raise ValueError(text)
    return sorted(found)


def nodes_of(allowed: Collection[int]) -> dict[int, list[int]]:
    """Processors by their NUMA node; all in one where the system tells of none."""
    nodes = {}
    for path in _NODES.glob("node[0-9]*"):
        try:
            cpus = [cpu for cpu in parse_cpus((path / "cpulist").read_text().strip()) if cpu in allowed]
        except (OSError, ValueError):
            continue
        if cpus:  # not one of memory alone
            nodes[int(path.name.removeprefix("node"))] = cpus
    return dict(sorted(nodes.items())) or {0: sorted(allowed)}


def bind_to_nodes(binds: bool) -> None:
    """Say whether `own_nodes` may bind threads: not where somebody wants the system to choose."""
    _binds[0] = binds


def own_nodes() -> dict[int, list[int]]:
    """The NUMA nodes that threads are bound to, with those of their processors that this thread may use.

    None where the system binds no threads, or shall not.
    """
    if not _binds[0] or not hasattr(os, "sched_getaffinity"):
        return {}
    return nodes_of(os.sched_getaffinity(0))


def homes(count: int, nodes: Mapping[int, Sequence[int]]) -> list[int]:
    """The node of each of `count` threads: next to where it gets the most cores; the first nodes have no fewer."""
    sizes = {node: len(cores(cpus)) for node, cpus in nodes.items()}
    taken, found = dict.fromkeys(nodes, 0), list[int]()
    for _ in range(count):
        found.append(max(sizes, key=lambda node: sizes[node] / (taken[node] + 1)))
        taken[found[-1]] += 1
    return found


def _quota() -> int:
    """Processors' worth of time that the control group grants; many where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group, or no limit ("max")
        return 1 << 16
