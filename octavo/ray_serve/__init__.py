"""Octavo as an app for Ray Serve: `serve run octavo.ray_serve:app model=... max_replicas=4`.

Serve starts replicas on the machines of a Ray cluster, as many as requests need, puts another one in the place of one
that dies, and routes; every route of `octavo serve` is there, and a request goes to the replica that has read most of
its prompt, weighed against its load.
"""

import dataclasses
from typing import Any

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.ray_cluster import alive_nodes, even_share, import_ray, join_cluster, leave_cluster
from octavo.ray_serve.app_options import AppOptions, read_options
from octavo.ray_serve.door import Door
from octavo.ray_serve.replica import Replica


def build_app(args: dict[str, Any]) -> Any:
    """The app, for `serve.run`: a `ray.serve.Application`.

    Args:
        args: options of octavo.EngineArgs, of `octavo serve`, and of AppOptions, by their names.

    Raises ConfigError for an option that is unknown or out of range, or where Ray Serve is not installed.
    """
    engine, server, options = read_options(args)
    import_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(f'Ray Serve cannot be used ({error}): pip install "octavo[ray]" on every machine.') from error
    engine, num_cpus = _threads(engine, options)
    replica = serve.deployment(
        Replica,
        name="Octavo",
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=options.max_ongoing_requests,
        graceful_shutdown_timeout_s=server.shutdown_timeout,
        request_router_config={
            "request_router_class": "octavo.ray_serve.router.PrefixRouter",
            "request_router_kwargs": {"pieces_per_request": options.pieces_per_request},
        },
        **options.scaling,
    )
    door = serve.deployment(
        Door, name="Door", num_replicas=options.num_doors, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4096
    )
    return door.bind(replica.bind(engine, server), server.body_bytes(has_media=True))


def _threads(engine: EngineArgs, options: AppOptions) -> tuple[EngineArgs, float]:
    """The engine's options with its number of threads, and the CPUs that a replica takes.

    Without either, replicas divide the CPUs of the cluster among them, so that all have room.
    """
    places_ranks = engine.distributed_executor_backend == "ray"
    if places_ranks:  # which take CPUs themselves
        return engine, 1.0 if options.num_cpus is None else options.num_cpus
    given = options.num_cpus or (engine.threads or 0) * engine.num_ranks
    num_cpus = given or max(1, even_share(_cpus(), options.most_replicas))
    threads = engine.threads or max(1, int(num_cpus) // engine.num_ranks)
    return dataclasses.replace(engine, threads=threads), float(num_cpus)


def _cpus() -> list[float]:
    """Of each machine of the cluster. This process is not connected to it afterwards, unless it was before.

    `serve run` connects with settings of its own, after it has the app.
    """
    leaves = join_cluster()
    try:
        return [machine.get("CPU", 0) for machine in alive_nodes(import_ray())]
    finally:
        if leaves:
            leave_cluster()


app = build_app
