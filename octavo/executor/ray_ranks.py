"""Ranks on the machines of a Ray cluster: actors in a placement group, one a rank. Their end is `RankActor`."""

import contextlib
import dataclasses
import functools
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from types import ModuleType
from typing import Any

import psutil

from octavo.config import EngineArgs
from octavo.errors import ConfigError, EngineDeadError, shorten
from octavo.executor.process import Load
from octavo.executor.process_worker import Worker
from octavo.executor.ray_cluster import alive_nodes, by_machine, even_share, import_ray, join_cluster, leave_cluster
from octavo.rank_place import RankLink, RankPlace

log = logging.getLogger("octavo")

PLACED_WITHIN = 300.0
"""Seconds that the cluster has to find room for all ranks, for which it may have to start machines."""
LOOK_EVERY = 1.0
"""Seconds after which we look whether there is room."""
STARTED_WITHIN = 120.0
"""Seconds in which the ranks' processes start, once there is."""


class RankActor:
    """What runs on a rank's machine, in a process that Ray starts and ends: a Worker, and what others ask of it.

    Args:
        folder: where relative paths begin, if this machine has it too; else where Ray was started.
    """

    def __init__(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._worker = Worker()
        _use_interface_of(self.host())

    def host(self) -> str:
        """The address by which the other machines reach this one."""
        return str(import_ray().util.get_node_ip_address())

    def node(self) -> str:
        """The machine's name in the cluster."""
        return str(import_ray().get_runtime_context().get_node_id())

    def pid(self) -> int:
        """This process's number on its machine."""
        return os.getpid()

    def free_address(self) -> str:
        """Where ranks can meet, if this is the first of them: torch.distributed's "tcp://host:port"."""
        host = self.host()
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            port = server.getsockname()[1]
        return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"

    def answer(self, message: bytes) -> bytes:
        """The reply to a request, as a rank's process writes them."""
        return self._worker.answer(message)

    def watch(self) -> None:
        """Never returns: who waits for it learns of this process's end, also while no request runs."""
        threading.Event().wait()


def _use_interface_of(host: str) -> None:
    """Have gloo listen where Ray does: by itself it takes the address that this machine's name stands for."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class RayRanks:
    """A RankGroup whose ranks are on the machines of a Ray cluster, and meet through the network.

    Ranks of one machine follow each other.

    Args:
        args: the engine's options: how many ranks, of how many threads.

    Raises ConfigError where Ray is missing, cannot be reached, or has no room, EngineDeadError where a process that it
    starts ends at once.
    """

    address: str
    """Where ranks meet: torch.distributed's "tcp://host:port" of the first rank's machine."""
    threads: int
    """Of each rank: as many as its bundle has CPUs."""

    def __init__(self, args: EngineArgs) -> None:
        self._ray = import_ray()
        self.size = args.num_ranks
        self.actors: list[Any] = []
        self.hosts: list[str] = []
        """Addresses of the ranks' machines."""
        self._awaited: list[deque[Any]] = [deque() for _ in range(self.size)]
        """By rank, the replies that have not come, and at last the one that comes when it has ended."""
        self._came: queue.SimpleQueue[tuple[int, bytes | None]] = queue.SimpleQueue()
        self._ends = [""] * self.size
        self._lock = threading.Lock()
        self._group: Any = None
        self._leaves = join_cluster()
        try:
            self._start(args)
        except BaseException:
            self.close()
            raise

    def _start(self, args: EngineArgs) -> None:
        ray = self._ray
        self._group, bundle = _place(ray, args)
        self.threads = int(bundle["CPU"])
        self.actors = [_actor(ray, self._group, i, bundle) for i in range(self.size)]
        try:
            nodes = ray.get([actor.node.remote() for actor in self.actors], timeout=STARTED_WITHIN)
            self.actors = [self.actors[i] for i in by_machine(nodes)]
            self.hosts = ray.get([actor.host.remote() for actor in self.actors])
            self.address = ray.get(self.actors[0].free_address.remote())
        except ray.exceptions.RayError as error:
            raise EngineDeadError(f"Ray could not start the process of a rank: {_line(error)}.") from error
        places = ", ".join(f"{self.hosts.count(host)} on {host}" for host in dict.fromkeys(self.hosts))
        address = ray.get_runtime_context().gcs_address
        log.info("Ray cluster at %s: ranks of %d threads, %s", address, self.threads, places)
        for rank, actor in enumerate(self.actors):
            end = actor.watch.options(concurrency_group="watch").remote().future()
            end.add_done_callback(functools.partial(self._end, rank))

    def loads(self, args: EngineArgs) -> list[Load]:
        args = dataclasses.replace(args, threads=self.threads)
        link = RankLink(address=self.address, timeout=args.distributed_timeout_seconds)
        return [Load.of(args, RankPlace(rank, self.size, args.tensor_parallel_size), link) for rank in range(self.size)]

    def send(self, rank: int, message: bytes) -> None:
        reply = self.actors[rank].answer.remote(message).future()
        with self._lock:
            self._awaited[rank].append(reply)
        reply.add_done_callback(lambda reply: self._pass_on(rank))

    def _pass_on(self, rank: int) -> None:
        """Replies that have come, in the order of what they reply to."""
        with self._lock:
            awaited = self._awaited[rank]
            while awaited and awaited[0].done():
                reply = awaited.popleft()
                if reply.exception() is None:
                    self._came.put((rank, reply.result()))
                else:
                    self._note_end(rank, reply)

    def _end(self, rank: int, end: Any) -> None:
        with self._lock:
            self._note_end(rank, end)

    def _note_end(self, rank: int, reply: Any) -> None:
        if not self._ends[rank]:
            self._ends[rank] = _line(reply.exception())
            self._came.put((rank, None))

    def receive(self, timeout: float | None) -> list[tuple[int, bytes | None]]:
        came: list[tuple[int, bytes | None]] = []
        with contextlib.suppress(queue.Empty):
            came.append(self._came.get(timeout != 0, timeout))
            while True:
                came.append(self._came.get_nowait())
        return came

    def end_of(self, rank: int) -> str:
        return f"on {self.hosts[rank]} has ended ({self._ends[rank]})"

    def close(self) -> None:
        for actor in self.actors:
            with contextlib.suppress(Exception):  # it may have ended, and so may the cluster
                self._ray.kill(actor, no_restart=True)
        if self._group is not None:
            with contextlib.suppress(Exception):
                self._ray.util.remove_placement_group(self._group)
        self.actors, self._group = [], None
        if self._leaves:
            self._leaves = False
            leave_cluster()


def _line(error: BaseException) -> str:
    """An error of Ray's in one line; they have many."""
    cause = getattr(error, "cause", None) or error  # of what a method has raised, not how Ray tells it
    return shorten(str(cause).strip().partition("\n")[0].rstrip("."), 300)


def _bundle(args: EngineArgs, machines: list[dict[str, float]]) -> dict[str, float] | None:
    """What each rank takes: `threads` CPUs, or as many as all of all replicas can have; a GPU where each can have one.

    None where there are too few machines.
    """
    num_ranks = args.num_ranks * args.data_parallel_size
    share = args.threads or even_share((machine.get("CPU", 0) for machine in machines), num_ranks)
    if not share:
        return None
    has_gpus = sum(machine.get("GPU", 0) for machine in machines) >= num_ranks
    wants_gpu = args.device.startswith("cuda") or (args.device == "auto" and has_gpus)
    return {"CPU": float(share), **({"GPU": 1.0} if wants_gpu else {})}


def _place(ray: ModuleType, args: EngineArgs) -> tuple[Any, dict[str, float]]:
    """A placement group with a bundle for each rank, on as few machines as will do; what each bundle is.

    Waits for machines that are on their way. Raises ConfigError if there is no room by then.
    """
    from ray.util.placement_group import placement_group

    start = time.monotonic()
    machines = alive_nodes(ray)
    while (bundle := _bundle(args, machines)) is None:
        if time.monotonic() - start > PLACED_WITHIN:
            raise ConfigError(_no_room(args, machines, "a CPU"))
        _say_once(start, args)
        time.sleep(LOOK_EVERY)
        machines = alive_nodes(ray)
    group = placement_group([bundle] * args.num_ranks, strategy="PACK")
    while not group.wait(LOOK_EVERY):
        if time.monotonic() - start > PLACED_WITHIN:
            ray.util.remove_placement_group(group)
            raise ConfigError(_no_room(args, machines, " and ".join(f"{n:g} {name}" for name, n in bundle.items())))
        _say_once(start, args)
    return group, bundle


def _no_room(args: EngineArgs, machines: list[dict[str, float]], each: str) -> str:
    there = [f"{machine.get('CPU', 0):g} CPUs" for machine in machines]
    return (
        f"the Ray cluster has no room for {args.num_ranks * args.data_parallel_size} ranks with {each} each: it has "
        f"{len(machines)} machines ({', '.join(there)}), and `ray status` says what is free. Add machines with `ray "
        "start --address=HOST:6379`, or give fewer threads."
    )


def _say_once(start: float, args: EngineArgs) -> None:
    if time.monotonic() - start < LOOK_EVERY:
        log.info("waiting for room in the Ray cluster for %d ranks", args.num_ranks)


def _actor(ray: ModuleType, group: Any, index: int, bundle: dict[str, float]) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    actor = ray.remote(concurrency_groups={"watch": 1})(RankActor)
    return actor.options(
        num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy, max_restarts=0
    ).remote(os.getcwd())
