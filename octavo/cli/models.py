"""`octavo models`: the table of architectures, from the code itself."""

import argparse
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from octavo.architectures import all_architectures

_MARKS = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class Conformance:
    """What was found when an architecture was held against its reference: written by `make docs`, checked in CI."""

    golden_cases: int = 0
    prefix_caching: bool | None = None


def conformance() -> dict[str, Conformance]:
    """By architecture. Those that other packages register have none here."""
    stored = json.loads((files("octavo.architectures") / "conformance.json").read_text())
    return {name: Conformance(**values) for name, values in stored.items()}


def rows() -> list[dict[str, Any]]:
    """One row for each architecture, by name."""
    found = conformance()
    table = []
    by_name = {a.name: a for a in all_architectures().values()}  # aliases name the same
    for a in sorted(by_name.values(), key=lambda a: a.name.lower()):
        of = found.get(a.name, Conformance())
        table.append(
            {
                "architecture": a.name,
                "models": a.about,
                "examples": ", ".join(a.examples),
                "tasks": ", ".join(a.tasks),
                "golden cases": of.golden_cases,
                "GGUF": a.gguf.arch if a.gguf else "",
                "prefix caching": _MARKS[of.prefix_caching],
                "also called": ", ".join(a.aliases),
            }
        )
    return table


def markdown(*columns: str) -> str:
    """The table as documents show it, with these columns or all."""
    table = rows()
    shown = columns or tuple(table[0])
    lines = [f"| {' | '.join(shown)} |", f"|{' --- |' * len(shown)}"]
    lines += [f"| {' | '.join(str(r[c]) for c in shown)} |" for r in table]
    return "\n".join(lines)


def run(namespace: argparse.Namespace) -> int:
    if namespace.format == "json":
        print(json.dumps(rows(), indent=2))
    elif namespace.format == "markdown":
        print(markdown())
    else:
        print(f"{'architecture':32s} {'tasks':20s} {'golden':6s} {'GGUF':12s} {'prefix':6s} models")
        for r in rows():
            print(
                f"{r['architecture']:32s} {r['tasks']:20s} {r['golden cases']!s:6s} {r['GGUF']:12s} "
                f"{r['prefix caching']:6s} {r['models']}"
            )
        print("\n--format markdown and --format json tell more: example checkpoints, other names.")
    return 0
