"""Which processors each rank of a machine computes on.

Memory is taken from the NUMA node of the processor that first writes it, so a rank that is bound before it loads
anything has its weights and caches beside its own cores.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

from octavo.config import EngineArgs
from octavo.errors import ConfigError, shorten
from octavo.ops.native.threads import bind_to_nodes, cores, default_threads, divide, homes, nodes_of, parse_cpus


def numa_nodes() -> dict[int, list[int]]:
    """The processors of each NUMA node that this process may use; one node where the system tells of none."""
    return nodes_of(_allowed())


def bind(choice: str, local_rank: int, local_size: int) -> list[int]:
    """Bind this process, all of its threads, to processors, and return them.

    To be called before a backend is made, whose threads by default are as many as there are cores among them, or as
    many as this rank's share of the cores and of the control group's time.

    Args:
        choice: "auto": the ranks are spread over the NUMA nodes, and the cores of each are divided among its ranks;
            "none": nothing changes; else a list for each rank: "0-3,8|4-7,9".
        local_rank: which of the machine's ranks this is, those of all replicas counted.
        local_size: how many there are.

    Raises ConfigError for lists that are wrong, name processors that this process may not use, or are not as many as
    ranks; and for any list where the system binds no processes.
    """
    lists = None if choice in ("auto", "none") else _lists(choice, local_size)
    divide(cores=local_size, time=local_size)
    if not hasattr(os, "sched_setaffinity"):
        if lists is not None:
            raise ConfigError(f"cpu_bind={choice!r}: this system binds no processes to processors. Leave it out.")
        return sorted(_allowed())
    if lists is not None:
        cpus = lists[local_rank]
    elif choice == "auto" and local_size > 1:
        cpus = shares(list(numa_nodes().values()), local_size)[local_rank]
    else:
        return sorted(_allowed())
    for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:  # it has ended meanwhile
            continue
        except OSError as error:
            raise ConfigError(f"cpu_bind={choice!r}: rank {local_rank} cannot be bound to {cpus}: {error}.") from error
    divide(cores=1, time=local_size)
    return cpus


def take_share(args: EngineArgs, rank: int = 0) -> EngineArgs:
    """Bind this process as `cpu_bind` says; the options with the number of threads that it then computes with.

    Where it is the only one and has no list, nothing changes. To be called before a backend is made.

    Args:
        args: the engine's options.
        rank: which of its replica's ranks this is.

    Raises as `bind`.
    """
    bind_to_nodes(args.cpu_bind != "none")
    size = args.num_ranks * args.data_parallel_size
    if size == 1 and args.cpu_bind in ("auto", "none"):
        return args
    bind(args.cpu_bind, args.data_parallel_rank * args.num_ranks + rank, size)
    return args if args.threads is not None else dataclasses.replace(args, threads=default_threads())


def shares(nodes: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The processors of each of `size` ranks, by the nodes' processors.

    Whole cores, and whole nodes where there are fewer ranks than nodes; ranks that follow each other are near each
    other. Where a node has fewer cores than ranks, its ranks take turns on them.
    """
    if size <= len(nodes):
        parts = (nodes[rank * len(nodes) // size : (rank + 1) * len(nodes) // size] for rank in range(size))
        return [sorted(cpu for node in part for cpu in node) for part in parts]
    by_core = [cores(node) for node in nodes]
    ranks = [0] * len(nodes)
    for _ in range(size):  # each to where it gets the most
        ranks[max(range(len(nodes)), key=lambda n: (len(by_core[n]) / (ranks[n] + 1), -ranks[n]))] += 1
    found = []
    for of_node, count in zip(by_core, ranks, strict=True):
        for rank in range(count):
            part = of_node[rank * len(of_node) // count : (rank + 1) * len(of_node) // count]
            found.append(sorted(cpu for core in part or [of_node[rank % len(of_node)]] for cpu in core))
    return found


def _lists(choice: str, size: int) -> list[list[int]]:
    parts, allowed, found = choice.split("|"), _allowed(), list[list[int]]()
    if len(parts) != size:
        raise ConfigError(
            f"cpu_bind={shorten(choice)!r} has {len(parts)} list(s) for {size} rank(s) on this machine. "
            "Give one for each, with | between them, or auto or none."
        )
    for rank, part in enumerate(parts):
        try:
            cpus = parse_cpus(part.strip())
        except ValueError:
            raise ConfigError(
                f"cpu_bind: {shorten(part)!r}, of rank {rank}, is no list of processors such as 0-3,8."
            ) from None
        if missing := [cpu for cpu in cpus if cpu not in allowed]:
            raise ConfigError(
                f"cpu_bind: processor {missing[0]}, of rank {rank}, is none that this process may use: "
                f"{_written(sorted(allowed))}."
            )
        found.append(cpus)
    return found


def _written(cpus: Sequence[int]) -> str:
    """Ascending numbers as Linux writes them."""
    runs = list[list[int]]()
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


@functools.cache
def _allowed() -> frozenset[int]:
    """What this process might use before it was bound: it may be bound again, for another model."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def describe_nodes(threads: int = 0) -> str:
    """The nodes with their processors, and of several with their share of `threads`: "0: 0-15; 1: 16-31"."""
    nodes = numa_nodes()
    own = homes(threads, nodes) if len(nodes) > 1 else []
    return "; ".join(
        f"{node}: {_written(cpus)}" + (f" ({own.count(node)} threads)" if own else "") for node, cpus in nodes.items()
    )
