"""Which architectures there are, by the names that config.json's `architectures` uses."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.architectures.config import Config
from octavo.architectures.heads import Build, with_classes
from octavo.errors import UnsupportedModelError, did_you_mean

GENERATES = ("generate", "embedding")
"""Tasks of a language model. It also gives rewards, where told which tokens' logits they are."""
EMBEDS = ("embedding",)
"""Tasks of a model that is published without a head."""
CLASSIFIES = ("classify",)


@dataclass(frozen=True)
class GGUFFormat:
    """How llama.cpp stores this architecture, where it differs from the published checkpoint.

    Args:
        arch: llama.cpp's `general.architecture`.
        config: config.json keys from GGUF metadata; called with the keys that most models share, already translated,
            and the whole metadata. Returns keys to add or change.
        undo: published module name (as in the name table) to what turns llama.cpp's tensor into the published one.
            Called with the tensor and the config.
        when: which metadata this architecture serves, where several share `arch`.
    """

    arch: str
    config: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda shared, metadata: {}
    undo: Mapping[str, Callable[[Any, Config], Any]] = field(default_factory=dict)
    when: Callable[[Mapping[str, Any]], bool] = lambda metadata: True


@dataclass(frozen=True)
class Architecture:
    """A row of the table of models."""

    name: str
    build: Build
    about: str
    examples: tuple[str, ...]
    gguf: GGUFFormat | None
    tasks: tuple[str, ...] = GENERATES
    """What it serves: generate, embedding, classify or reward. The first is what it does unless told otherwise."""


_ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str,
    *aliases: str,
    about: str = "",
    examples: tuple[str, ...] = (),
    gguf: GGUFFormat | None = None,
    tasks: tuple[str, ...] = GENERATES,
) -> Callable[[Build], Build]:
    """Register a function from config to model under `name`, and under aliases that published configs use."""

    def register(build: Build) -> Build:
        for each in (name, *aliases):
            served = gguf if each == name else None
            _ARCHITECTURES[each] = Architecture(each, build, about, examples, served, tasks)
        return build

    return register


def all_architectures() -> dict[str, Architecture]:
    """Every architecture by name. Imports the families on first use."""
    import octavo.architectures as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _ARCHITECTURES


def find_architecture(names: list[str]) -> Architecture:
    """The first of a config's `architectures` that is known. Raises UnsupportedModelError with the closest names."""
    known = all_architectures()
    for name in names:
        if name in known:
            return known[name]
        base = known.get(name.removesuffix("ForSequenceClassification") + "ForCausalLM")
        if name.endswith("ForSequenceClassification") and base is not None:
            return Architecture(name, with_classes(base.build), base.about, (), None, CLASSIFIES)
    wanted = ", ".join(names) or "(none given)"
    hint = did_you_mean(names[0], known) if names else ""
    raise UnsupportedModelError(
        f"architecture {wanted} is not one that Octavo has.{hint} `octavo models` lists them all, and "
        "docs/adding-a-model.md shows how to add one."
    )
