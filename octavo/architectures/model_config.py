"""A published config.json, read with clear errors: the one place where its values are looked up and checked."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, overload

from octavo.architectures.config_keys import KEYS
from octavo.architectures.config_kinds import check
from octavo.architectures.config_spellings import SPELLINGS
from octavo.errors import CheckpointError

T = TypeVar("T")
NONE: Mapping[str, Any] = MappingProxyType({})
MAX_PIECES = 1 << 16
"""Layers times experts, and layers times heads: the largest published models have a tenth of it."""


class Config:
    """The keys of a config.json.

    `config.key` raises a CheckpointError that names a missing key, or one whose value is not of the key's kind. A key
    is found under each of its SPELLINGS; one that the file leaves out has its family's default. For a null, `get` gives
    the caller's own default, as config classes do where they compute a key of others.

    Args:
        values: as the file has them.
        defaults: what the family's published config class takes for keys that are left out.
        path: what the keys are inside of, `attn_config.`; empty for the file itself.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any] = NONE, path: str = "") -> None:
        self.values = dict(values)
        self.defaults = defaults
        self.path = path
        self.assumed: dict[str, Any] = {}
        """Defaults that were taken so far."""

    def value(self, key: str) -> Any:
        """The key's value, checked, or its default; None where it is null, or missing without a default.

        Raises CheckpointError for a value of the wrong kind.
        """
        value, spellings = self.stated(key), (key, *SPELLINGS.get(key, ()))
        return value if value is not None or any(name in self.values for name in spellings) else self.default(key)

    def default(self, key: str) -> Any:
        """What the family's config class takes for a key that is left out; None where it takes nothing."""
        name = next((n for n in (key, *SPELLINGS.get(key, ())) if n in self.defaults), None)
        if name is None:
            return None
        self.assumed[self.path + name] = self.defaults[name]
        return self.defaults[name]

    def stated(self, key: str) -> Any:
        """The key's value in the file, checked; None where the file does not say. Raises as `value` does."""
        for name in (key, *SPELLINGS.get(key, ())):
            value = self.values.get(name)
            if value is not None:
                return check(self.path + name, value, KEYS.get(name))
        return None

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key in ("values", "defaults", "path", "assumed"):
            raise AttributeError(key)
        value = self.stated(key)
        if value is None:
            value = self.default(key)
        if value is None:
            kind = self.values.get("architectures") or self.values.get("model_type") or "this model"
            raise CheckpointError(
                f"config.json has no {self.path + key!r}, which {str(kind)[:80]} needs. Is the file complete?"
            )
        return value

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, default: T) -> T: ...
    def get(self, key: str, default: Any = None) -> Any:
        """The key's value or the family's default, or `default` where there is neither, or a null."""
        value = self.value(key)
        return default if value is None else value

    def first(self, *keys: str, default: Any = None) -> Any:
        """The first of `keys` that the file has, else the first that has a default, else `default`."""
        found = (read(key) for read in (self.stated, self.default) for key in keys)
        return next((value for value in found if value is not None), default)

    def section(self, key: str) -> "Config":
        """The object under `key`, as a config of its own; an empty one where there is none."""
        made = type(self)(self.get(key, {}), self.defaults.get(key, NONE), f"{self.path}{key}.")
        made.assumed = self.assumed
        return made

    def sections(self, key: str) -> Iterator["Config"]:
        """The objects of the list under `key`."""
        for i, values in enumerate(getattr(self, key)):
            yield type(self)(values, NONE, f"{self.path}{key}[{i}].")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def replace(self, **values: Any) -> "Config":
        made = type(self)({**self.values, **values}, self.defaults, self.path)
        made.assumed = self.assumed
        return made

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Config":
        """This config with other defaults: one name may stand for models of several config classes."""
        made = type(self)(self.values, defaults, self.path)
        made.assumed = self.assumed
        return made

    def check_sizes(self) -> None:
        """Refuse what would take minutes to build. Raises CheckpointError."""
        layers = self.get("num_hidden_layers", 1)
        for key in ("num_experts", "num_attention_heads"):
            counts = [v for n in (key, *SPELLINGS[key]) if isinstance(v := self.values.get(n), int)]
            if layers * max(counts, default=0) > MAX_PIECES:
                raise CheckpointError(
                    f"config.json: {layers} layers with {key} {max(counts)} are more than any model has "
                    f"({MAX_PIECES} together). Is the file damaged?"
                )
