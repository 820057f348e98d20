"""A module imports only from the floors below its own, and no two modules need each other: docs/design.md says why."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import octavo

ROOT = Path(octavo.__file__).parent
ROWS = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT.parent / "docs" / "design.md").read_text(), re.MULTILINE)
FLOORS = {name: int(number) for number, names in ROWS for name in re.findall(r"`(\w+)(?:/|\.py)`", names)}
"""The packages and modules of docs/design.md's table, with their floors."""
FLOORS |= {"": FLOORS["llm"], "__main__": FLOORS["cli"]}  # `octavo` itself, whose names are loaded when asked for

LATE = {
    ("cli.main", "cli"): "a command loads what it needs, and --help nothing",
    ("cli.main", "server.server_options"): "as above",
    ("cli.parser", "cli.config_file"): "few commands are given a file of flags, in YAML",
    ("launch", "client.replica_engine"): "most engines are one, in this process",
    ("launch", "executor"): "as above",
    ("cli.chat.session", "cli.chat"): "a pipe needs no terminal, and a conversation with a server no engine",
    ("executor.process_worker", "executor.local"): "it sees to it that it ends with its parent before it loads torch",
    ("executor.process_worker", "loading.model"): "as above",
    ("executor.process_worker", "ops.cpu_binding"): "as above",
    ("client.engine_process", "client.engine_server"): "as above",
    ("client.engine_process", "launch"): "as above",
    ("ops.selection", "ops.triton"): "triton takes half a second, and is not there where no GPU is",
    ("server.run", "server"): "the web framework loads while the engine's process starts",
}
"""Imports inside functions: which module, of which package, and why. Others stand at the top of their module."""


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    is_late: bool
    """Inside a function, or for types alone."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name, without the leading `octavo.`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> Iterator[Import]:
    known = modules()
    for name, path in known.items():
        tree = ast.parse(path.read_text())
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            names = list[str]()
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: write imports out"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for full in names:
                if full.partition(".")[0] == "octavo":
                    inner = full.removeprefix("octavo").removeprefix(".")
                    inner = inner if inner in known else inner.rpartition(".")[0]
                    yield Import(name, inner, id(node) not in top)


@pytest.fixture(scope="module")
def all_imports() -> list[Import]:
    """Not made when tests are collected, which each process does."""
    return sorted(set(imports()), key=lambda i: (i.importer, i.imported))


def floor(module: str) -> int:
    return FLOORS[module.partition(".")[0]]


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_every_module_has_a_floor() -> None:
    assert {name.partition(".")[0] for name in modules()} == FLOORS.keys(), "see the table in docs/design.md"


def test_file_names_say_their_room() -> None:
    """A family's processor aside, which is called as the family's file is."""
    rooms = [path for path in modules().values() if path.parent.name != "processors"]
    names = Counter(path.name for path in rooms if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_nothing_is_imported_from_above(all_imports: list[Import]) -> None:
    upward = [i for i in all_imports if floor(i.imported) > floor(i.importer) and i.importer]
    assert not upward, upward


def test_no_circles(all_imports: list[Import]) -> None:
    """Those that an import inside a function hides are found too."""
    needs = dict[str, set[str]]()
    for i in all_imports:
        if i.importer and i.importer != i.imported:
            needs.setdefault(i.importer, set()).add(i.imported)
    done, path = set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(needs.get(module, ())):
                visit(other)
            done.add(path.pop())

    for module in sorted(needs):
        visit(module)


def test_late_imports_are_for_a_quick_start(all_imports: list[Import]) -> None:
    late = {(i.importer, i.imported) for i in all_imports if i.is_late and i.importer}
    known = {p: rule for p in late for rule in LATE if p[0] == rule[0] and is_in(p[1], rule[1])}
    assert sorted(late - known.keys()) == [], "import these at the top of their module"
    assert sorted(LATE.keys() - known.values()) == [], "nothing is late there any more: delete their lines"


def test_each_package_can_be_the_first() -> None:
    """Also where `from octavo import LLM` would hide a failure, since Python then tries a second time."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "octavo"]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    names = [f"octavo.{name}".rstrip(".") for name in modules() if "." not in name and name != "__main__"]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["octavo", "octavo.engine", "octavo.media", "octavo.text"])
def test_starts_without_torch(package: str) -> None:
    names = [package, *(f"octavo.{name}" for name in modules() if is_in(f"octavo.{name}", package) and "." in package)]
    program = f"import sys, {', '.join(names)}; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
