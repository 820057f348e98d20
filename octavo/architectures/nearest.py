"""Of an architecture that Octavo lacks and transformers has: which of Octavo's families is the nearest to it."""

import re
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from octavo.errors import did_you_mean

IMPORT = re.compile(r"^from \.\.(\w+)\.(?:modeling|modular)_\w+ import (\([^)]*\)|.*)", re.MULTILINE)
"""What a modular file of transformers takes from another model's."""


def nearest_families(name: str, known: Iterable[str]) -> str:
    """A sentence for an error about `name`, or an empty string where neither transformers nor a typing error knows it.

    Reads the installed transformers' files as text: importing a model of it takes seconds.

    Args:
        name: a class, as config.json's `architectures` names it.
        known: the names that Octavo has.
    """
    known = set(known)
    spec = find_spec("transformers")
    models = Path(spec.origin).parent / "models" if spec is not None and spec.origin else None
    folder = None if models is None else _folder_of(name, models)
    if models is None or folder is None:
        return did_you_mean(name, known)
    near = _made_from(folder, models, known)
    hint = f" Nearest to it here: {', '.join(near)}." if near else did_you_mean(name, known)
    return f" The installed transformers has it, in models/{folder}.{hint}"


def _folder_of(name: str, models: Path) -> str | None:
    """The folder whose modeling file defines the class."""
    if not name.isidentifier():
        return None
    line = f"\nclass {name}("
    for path in sorted(models.glob("*/modeling_*.py")):
        if line in path.read_text(errors="replace"):
            return path.parent.name
    return None


def _made_from(folder: str, models: Path, known: set[str], depth: int = 3) -> list[str]:
    """Known architectures of the folder itself, else of those that its modular file takes most from, and so on."""
    if own := _classes(models / folder) & known:
        return sorted(own)[:2]
    modular = models / folder / f"modular_{folder}.py"
    if depth == 0 or not modular.is_file():
        return []
    taken = Counter[str]()
    for source, names in IMPORT.findall(modular.read_text(errors="replace")):
        taken[source] += len(re.findall(r"\w+", names))
    found: list[str] = []
    for source, _ in taken.most_common(3):
        found += [name for name in _made_from(source, models, known, depth - 1) if name not in found]
    return found[:3]


def _classes(folder: Path) -> set[str]:
    """What its modeling files define."""
    return {
        name
        for path in folder.glob("modeling_*.py")
        for name in re.findall(r"^class (\w+)\(", path.read_text(errors="replace"), re.MULTILINE)
    }
