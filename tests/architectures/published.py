"""The config classes that transformers has for the tree's architectures, and which keys of a config a family reads.

`python -m tests.architectures.published ROW` puts the defaults of a new row's class into defaults.json, once it has a
golden case.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

import octavo
from octavo.architectures import Architecture, Config, all_architectures
from octavo.architectures.config_spellings import SPELLINGS
from octavo.architectures.rope_settings import position_limit
from tests.golden import CASES, read_case

_TABLES = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
MODEL_TYPES = {name: kind for table in _TABLES for kind, name in table.items() if isinstance(name, str)}


def config_class(architecture: Architecture) -> Any:
    """transformers' config class of an architecture, or None where it has none, or one whose parts may be of any."""
    names = (architecture.name, *architecture.aliases, architecture.name.replace("ForCausalLM", "Model"))
    found = next((CONFIG_MAPPING[MODEL_TYPES[name]] for name in names if name in MODEL_TYPES), None)
    return None if found is None or AutoConfig in found.sub_configs.values() else found


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
            found[field.name] = list(default) if isinstance(default, tuple) else default  # as JSON has it
    for key in ("rope_theta", "partial_rotary_factor"):
        rope = getattr(made, "rope_parameters", None) or {}
        computed = key == "partial_rotary_factor" and hasattr(made, "qk_rope_head_dim")
        if key in rope and not computed:
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


def read_defaults(name: str) -> dict[str, Any]:
    """Of the class' defaults, those that the row reads and that are not taken for granted."""
    row, defaults = all_architectures()[name], class_defaults(PUBLISHED[name])
    cases = [case["config"] for path in CASES if (case := read_case(path))["row"] == name]
    with recorded() as asked:
        for config in [{"num_hidden_layers": 2, "num_kv_shared_layers": 0}, *cases]:
            values = {**defaults, **config, "architectures": [name]}
            build(row, values)
            position_limit(row.config(values))
    keys = {other for path, key in asked if not path for other in (key, *SPELLINGS.get(key, ()))}
    usual = {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    return {key: value for key, value in defaults.items() if key in keys and usual.get(key) != value}


if __name__ == "__main__":
    path = Path(octavo.__file__).parent / "architectures" / "defaults.json"
    table = json.loads(path.read_text()) | {name: read_defaults(name) for name in sys.argv[1:]}
    rows = (f"{json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")
