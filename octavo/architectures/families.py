"""Finds the families: this folder's files, and other packages' plugins.

Importing all of them would take longer than much else of a start. So index.json, which `make docs` writes, says in
which file each name is and which rows read which GGUF files; what it does not know is looked for in all families.
"""

import importlib
import json
import logging
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
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


INDEX = Path(__file__).with_name("index.json")


@cache
def _index() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(INDEX.read_text())
    return stored


def made_index() -> str:
    """What index.json must say: of each name its file, and of llama.cpp's names those rows that read its files."""
    _import_families()
    rows = {name: row for name, row in ARCHITECTURES.items() if _file(row)}
    gguf = dict[str, list[str]]()
    for row in dict.fromkeys(row.name for row in rows.values()):
        format = rows[row].gguf
        for arch in (format.arch, *format.also) if format is not None else ():
            gguf.setdefault(arch, []).append(row)
    return json.dumps({"modules": {name: _file(row) for name, row in rows.items()}, "gguf": gguf}, indent=1) + "\n"


def _import_families() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    # In the same order whatever was imported before: who goes through all takes the first that fits.
    for name in sorted(ARCHITECTURES, key=lambda name: _file(ARCHITECTURES[name]) or "~"):
        ARCHITECTURES[name] = ARCHITECTURES.pop(name)


def _file(row: Architecture) -> str:
    """The file of this folder that has a row; empty for those from elsewhere."""
    return row.home.removeprefix(f"{__package__}.") if row.home.startswith(f"{__package__}.") else ""


def _indexed(name: str) -> Architecture | None:
    """The architecture of that name, its family imported; None where the index does not know it."""
    if name not in ARCHITECTURES and name in _index()["modules"]:
        importlib.import_module(f"{__package__}.{_index()['modules'][name]}")
    return ARCHITECTURES.get(name)


_plugins_loaded = False


def _load_plugins() -> None:
    """Call what installed packages name in their entry points, once. One that fails is named and left out."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    from importlib.metadata import entry_points

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


def gguf_architectures(arch: str) -> Iterator[Architecture]:
    """Those that read GGUF files of llama.cpp's architecture `arch`, in the order in which they are asked.

    Families that the index does not name are imported when none of those that it names is taken.
    """
    asked = set[str]()
    for name in _index()["gguf"].get(arch, ()):
        if (row := _indexed(name)) is not None and row.gguf is not None and arch in (row.gguf.arch, *row.gguf.also):
            asked.add(row.name)
            yield row
    for row in all_architectures().values():
        if row.gguf is not None and row.name not in asked and arch in (row.gguf.arch, *row.gguf.also):
            asked.add(row.name)
            yield row


def find_architecture(names: list[str]) -> Architecture:
    """The first of a config's `architectures` that is known. Raises UnsupportedModelError with the nearest names.

    What transformers publishes for sequence classification is known for every family that generates.
    """
    for name in names:
        found = _indexed(name) or all_architectures().get(name)
        if found is not None:
            return found
        family, _, classifies = name.partition("ForSequenceClassification")
        base = all_architectures().get(f"{family}ForCausalLM")
        if not classifies and family != name and base is not None:
            return Architecture(name, with_classes(base.build), base.about, tasks=CLASSIFIES, defaults=base.defaults)
    wanted = ", ".join(names) or "(none given)"
    hint = nearest_families(names[0], all_architectures()) if names else ""
    raise UnsupportedModelError(
        f"architecture {wanted} is not one that Octavo has.{hint} `octavo models` lists them all, and "
        "docs/adding-a-model.md shows how to add one."
    )
