"""A published config.json, read with clear errors."""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from octavo.errors import CheckpointError

T = TypeVar("T")


class Config:
    """The keys of a config.json. `config.key` raises a CheckpointError that names a missing key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        value = self.values.get(key)
        if value is None:
            kind = self.values.get("architectures") or self.values.get("model_type") or "this model"
            raise CheckpointError(f"config.json has no {key!r}, which {kind} needs. Is the file complete?")
        return value

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, default: T) -> T: ...
    def get(self, key: str, default: Any = None) -> Any:
        """The key's value, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def first(self, *keys: str, default: Any = None) -> Any:
        """The first of `keys` that is there."""
        return next((v for k in keys if (v := self.values.get(k)) is not None), default)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def replace(self, **values: Any) -> "Config":
        return Config({**self.values, **values})
