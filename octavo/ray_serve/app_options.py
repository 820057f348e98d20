"""Options of an app for Ray Serve: those of the engine, of the server, and of the app itself."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from octavo.cli.flags import flag_type
from octavo.config import DEFAULT_MODEL, EngineArgs, engine_args, option
from octavo.errors import ConfigError, names_closest
from octavo.server.server_options import ServerOptions


@names_closest
@dataclasses.dataclass
class AppOptions:
    """Every option of the app that is neither the engine's nor the server's."""

    num_replicas: int = option(1, "replicas of the engine")
    max_replicas: int | None = option(None, "replicas at the most: as many as the requests need, from num_replicas on")
    target_ongoing_requests: float = option(16.0, "requests of a replica at which another one is started")
    max_ongoing_requests: int = option(256, "most requests that a replica runs or has waiting; others wait in Serve")
    autoscaling_config: dict[str, Any] = option({}, "Ray Serve's own settings of scaling, in place of the two above")
    num_cpus: float | None = option(None, "CPUs of the cluster for each replica (default: as many as threads)")
    num_doors: int = option(1, "processes that take requests and choose replicas for them")
    pieces_per_request: float = option(
        8.0, "how many pieces of 256 bytes more a replica must know of a prompt to make up for a request in its queue"
    )

    def __post_init__(self) -> None:
        for name in ("num_replicas", "max_ongoing_requests", "num_doors"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1.")
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ConfigError(f"max_replicas={self.max_replicas} must be at least num_replicas, {self.num_replicas}.")

    @property
    def most_replicas(self) -> int:
        """For how many there must be room."""
        return int(self.autoscaling_config.get("max_replicas", self.max_replicas or self.num_replicas))

    @property
    def scaling(self) -> dict[str, Any]:
        """How many replicas there are: what Serve's `deployment` takes."""
        if self.autoscaling_config:
            return {"autoscaling_config": self.autoscaling_config}
        if self.max_replicas is None:
            return {"num_replicas": self.num_replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.num_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
            }
        }


def read_options(given: Mapping[str, Any]) -> tuple[EngineArgs, ServerOptions, AppOptions]:
    """Options of all three kinds by their names. Values may be text, as `serve run` has them.

    Raises ConfigError for an unknown name or a value that cannot be.
    """
    parts: dict[type[Any], dict[str, Any]] = {kind: {} for kind in (AppOptions, ServerOptions, EngineArgs)}
    hints = {kind: typing.get_type_hints(kind) for kind in parts}
    for name, value in given.items():
        kind = next((kind for kind in parts if name in hints[kind]), EngineArgs)
        parts[kind][name] = _typed(name, value, hints[kind].get(name, str))
    engine = parts[EngineArgs]
    args, _ = engine_args(engine.pop("model", DEFAULT_MODEL), engine)
    server, app = ServerOptions(**parts[ServerOptions]), AppOptions(**parts[AppOptions])
    if server.allow_runtime_lora_updating:
        raise ConfigError("allow_runtime_lora_updating would reach one replica alone. Give lora_modules instead.")
    if server.lora_modules:
        args = dataclasses.replace(args, enable_lora=True)
    return args, server, app


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """The value that a text stands for; others as they are."""
    if not isinstance(value, str):
        return value
    try:
        if value[:1] in ("{", "["):
            return json.loads(value)
        kind = flag_type(annotation)
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return value.split(",") if kind is list else kind(value)
    except (ValueError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"{name}={value!r:.100} is no {getattr(flag_type(annotation), '__name__', 'value')}."
        ) from error
