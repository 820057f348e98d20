"""Which architectures there are, by the names that config.json's `architectures` uses."""

import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.score_heads import Build, with_classes
from octavo.errors import ConfigError, UnsupportedModelError, did_you_mean

log = logging.getLogger("octavo")

GENERATES = ("generate", "embedding")
"""Tasks of a language model. It also gives rewards, where told which tokens' logits they are."""
EMBEDS = ("embedding",)
"""Tasks of a model that is published without a head."""
CLASSIFIES = ("classify",)
REWARDS = ("reward",)
PLUGINS = "octavo.architectures"
"""The group of entry points by which packages bring architectures of their own."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table of models."""

    name: str
    build: Build
    about: str = ""
    examples: tuple[str, ...] = ()
    gguf: GGUFFormat | None = None
    tasks: tuple[str, ...] = GENERATES
    """What it serves: generate, embedding, classify or reward. The first is what it does unless told otherwise."""
    aliases: tuple[str, ...] = ()
    """Other names that published configs have for it."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What its config class takes for keys that a config.json leaves out."""

    def config(self, values: Mapping[str, Any]) -> Config:
        """The config that a config.json's values make. Raises CheckpointError for absurd sizes."""
        config = Config(values, self.defaults)
        config.check_sizes()
        return config


_ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str,
    *aliases: str,
    about: str = "",
    examples: tuple[str, ...] = (),
    gguf: GGUFFormat | None = None,
    tasks: tuple[str, ...] = GENERATES,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Build], Build]:
    """Register a function from config to model under `name`, and under aliases that published configs use."""

    def register(build: Build) -> Build:
        same = next((a.defaults for a in _ARCHITECTURES.values() if a.build is build), {})
        known = defaults if defaults is not None else defaults_of(name) or same
        made = Architecture(name, build, about, examples, gguf, tasks, aliases, known)
        for each in (name, *aliases):
            if each in _ARCHITECTURES:
                raise ConfigError(f"architecture {each!r} is registered already; choose another name.")
            _ARCHITECTURES[each] = made
        return build

    return register


def register_architecture(name: str, *aliases: str, **description: Any) -> Callable[[Build], Build]:
    """Decorate a function from config to model with it, to add an architecture from outside of Octavo.

    Args:
        name, aliases: what config.json's `architectures` calls it.
        description: `about` and `examples`, for `octavo models`; `gguf`, how llama.cpp stores it; `tasks`, what it
            serves, the usual one first; `defaults`, what keys that a config.json leaves out are (those of `register`ed
            names with the same function if not given).

    Raises ConfigError for a name that is taken.
    """
    _import_families()
    return architecture(name, *aliases, **description)


def _import_families() -> None:
    import octavo.architectures as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


_plugins_loaded = False


def _load_plugins() -> None:
    """Call what installed packages name in their entry points, once. One that fails is named and left out."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for entry in entry_points(group=PLUGINS):
        try:
            entry.load()()
        except Exception as error:  # a stranger's code: it must not keep the other models from loading
            log.warning(
                "the plugin %s = %s does not load (%s: %s); its architectures are missing",
                entry.name,
                entry.value,
                type(error).__name__,
                error,
            )


def all_architectures() -> dict[str, Architecture]:
    """Every architecture by name and alias. Imports the families, and other packages' plugins, on first use."""
    _import_families()
    _load_plugins()
    return _ARCHITECTURES


def find_architecture(names: list[str]) -> Architecture:
    """The first of a config's `architectures` that is known. Raises UnsupportedModelError with the closest names.

    What transformers publishes for sequence classification is known for every family that generates.
    """
    known = all_architectures()
    for name in names:
        if name in known:
            return known[name]
        family, _, classifies = name.partition("ForSequenceClassification")
        base = known.get(f"{family}ForCausalLM")
        if not classifies and family != name and base is not None:
            return Architecture(name, with_classes(base.build), base.about, tasks=CLASSIFIES, defaults=base.defaults)
    wanted = ", ".join(names) or "(none given)"
    hint = did_you_mean(names[0], known) if names else ""
    raise UnsupportedModelError(
        f"architecture {wanted} is not one that Octavo has.{hint} `octavo models` lists them all, and "
        "docs/adding-a-model.md shows how to add one."
    )
