"""Finds the families: this folder's files, and other packages' plugins."""

import importlib
import logging
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from octavo.architectures.nearest import nearest_families
from octavo.architectures.registry import ARCHITECTURES, CLASSIFIES, Architecture, architecture
from octavo.architectures.score_heads import Build, with_classes
from octavo.errors import UnsupportedModelError

log = logging.getLogger("octavo")

PLUGINS = "octavo.architectures"
"""The group of entry points by which packages bring architectures of their own."""


def register_architecture(name: str, *aliases: str, **description: Any) -> Callable[[Build], Build]:
    """Decorate a function from config to model with it, to add an architecture from outside of Octavo.

    Args:
        name, aliases: what config.json's `architectures` calls it.
        description: `about` and `examples`, for `octavo models`; `gguf`, how llama.cpp stores it; `tasks`, what it
            serves, the usual one first; `media`, its processor of pictures, films and sounds; `defaults`, what keys
            that a config.json leaves out are (those of `register`ed names with the same function if not given).

    Raises ConfigError for a name that is taken.
    """
    _import_families()
    return architecture(name, *aliases, **description)


def _import_families() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")


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
    return ARCHITECTURES


def find_architecture(names: list[str]) -> Architecture:
    """The first of a config's `architectures` that is known. Raises UnsupportedModelError with the nearest names.

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
    hint = nearest_families(names[0], known) if names else ""
    raise UnsupportedModelError(
        f"architecture {wanted} is not one that Octavo has.{hint} `octavo models` lists them all, and "
        "docs/adding-a-model.md shows how to add one."
    )
