"""The config classes that transformers has for the tree's architectures, and which keys of a config a family reads."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from octavo.architectures import Architecture, Config, all_architectures

_TABLES = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
MODEL_TYPES = {name: kind for table in _TABLES for kind, name in table.items() if isinstance(name, str)}


def config_class(architecture: Architecture) -> Any:
    """transformers' config class of an architecture, or None where it has none."""
    names = (architecture.name, *architecture.aliases)
    return next((CONFIG_MAPPING[MODEL_TYPES[name]] for name in names if name in MODEL_TYPES), None)


PUBLISHED = {a.name: cls for a in all_architectures().values() if (cls := config_class(a)) is not None}
"""Architectures that transformers has, by name."""


def class_defaults(cls: Any) -> dict[str, Any]:
    """What a config class takes for what is left out; sub-configs as dicts, nothing for what it computes."""
    made = cls()
    found = {}
    for field in dataclasses.fields(cls):
        default = getattr(field.default, "default", field.default)
        if field.name in cls.sub_configs:
            found[field.name] = class_defaults(cls.sub_configs[field.name])
        elif default is dataclasses.MISSING:
            found[field.name] = getattr(made, field.name)
        elif default is not None:
            found[field.name] = default
    for key in ("rope_theta", "partial_rotary_factor"):
        rope = getattr(made, "rope_parameters", None) or {}
        if key in rope:
            found[key] = rope[key]
    return {key: value for key, value in found.items() if key != "dtype"}


@contextmanager
def recorded() -> Iterator[set[tuple[str, str]]]:
    """The keys that configs are asked for meanwhile, each with the path of the object that it is in."""
    asked: set[tuple[str, str]] = set()
    stated = Config.stated

    def record(self: Config, key: str) -> Any:
        asked.add((self.path, key))
        return stated(self, key)

    Config.stated = record
    try:
        yield asked
    finally:
        Config.stated = stated


def build(architecture: Architecture, values: dict[str, Any]) -> None:
    """Compose the model of a config, without weights."""
    with torch.device("meta"):
        architecture.build(architecture.config(values))
