"""A Ray cluster: reached, or started here, and left again. Nothing imports `ray` before it is needed."""

import os
import signal
import socket
import threading
from collections.abc import Iterable, Sequence
from types import ModuleType

from octavo.errors import ConfigError

REACHED_WITHIN = 10.0
"""Seconds in which a cluster's head takes a connection."""

_lock = threading.Lock()
_uses = 0
"""How many of this process use the cluster that `join_cluster` started here."""


def import_ray() -> ModuleType:
    """The module `ray`. Raises ConfigError, with the remedy, where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f'distributed_executor_backend="ray" needs Ray ({error}): pip install "octavo[ray]" on every machine.'
        ) from error
    module: ModuleType = ray
    return module


def join_cluster() -> bool:
    """Connect this process to a cluster: the one it is connected to, RAY_ADDRESS's, this machine's, or a new one.

    Returns whether `leave_cluster` is to be called for it, which ends a cluster that was started here once nobody uses
    it. Raises ConfigError where `ray` is missing or the cluster cannot be reached.
    """
    global _uses
    ray = import_ray()
    with _lock:
        if not ray.is_initialized():
            _connect(ray)
            _uses = 0
        elif not _uses:
            return False  # somebody else's, and theirs to end
        _uses += 1
    return True


def _connect(ray: ModuleType) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray's reports of its use go to the internet
    address = os.environ.get("RAY_ADDRESS", "")
    _check_reachable(address)
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_term = signal.getsignal(signal.SIGTERM) if in_main_thread else None
    try:
        ray.init(configure_logging=False, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _unreachable(address, error) from error
    finally:
        if on_term is not None:  # ray.init puts its own there
            signal.signal(signal.SIGTERM, on_term)


def _check_reachable(address: str) -> None:
    """Raises ConfigError where nothing listens at "host:port"; Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()
        except OSError as error:
            raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the Ray cluster{f' at RAY_ADDRESS={address}' if address else ''} cannot be reached: {error}. Run `ray start "
        "--head` on one machine and `ray start --address=HOST:6379` on the others, or `ray stop` if an old one is left."
    )


def leave_cluster() -> None:
    """This use has ended: the last one's end disconnects, and stops a cluster that was started here."""
    global _uses
    with _lock:
        _uses -= 1
        if not _uses:
            import_ray().shutdown()


def alive_nodes(ray: ModuleType) -> list[dict[str, float]]:
    """What each machine of the cluster has in all: CPU, GPU, memory, ..."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def even_share(cpus: Iterable[float], num_ranks: int) -> int:
    """The most CPUs that each of `num_ranks` can have, all of them as many, on machines with `cpus` each.

    0 where there are fewer CPUs than ranks.
    """
    machines = [int(count) for count in cpus]
    for share in range(max(machines, default=0), 0, -1):
        if sum(count // share for count in machines) >= num_ranks:
            return share
    return 0


def by_machine(nodes: Sequence[str]) -> list[int]:
    """The order in which ranks of one machine follow each other, the machine with most of them first.

    `nodes` has the machine of each; the answer their indices.
    """
    first = {node: nodes.index(node) for node in nodes}
    return sorted(range(len(nodes)), key=lambda i: (-nodes.count(nodes[i]), first[nodes[i]], i))
