"""`octavo models`: the table of architectures, from the code itself."""

import argparse
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from octavo.architectures import Architecture, all_architectures
from octavo.media.processor import Processor

_MARKS = {True: "yes", False: "no", None: ""}
_LETTERS = {"image": "I", "video": "V", "audio": "A"}


@dataclass(frozen=True)
class Conformance:
    """What was found when an architecture was held against its reference: written by `make docs`, checked in CI."""

    golden_cases: int = 0
    prefix_caching: bool | None = None
    inputs: str = ""
    """Of models whose config decides what they take: all that their golden cases show."""


def conformance() -> dict[str, Conformance]:
    """By architecture. Those that other packages register have none here."""
    stored = json.loads((files("octavo.architectures") / "conformance.json").read_text())
    return {name: Conformance(**values) for name, values in stored.items()}


def inputs_of(*processors: type[Processor] | None) -> str:
    """What models take, as vLLM's list writes it: T (text), I (pictures), V (films), A (sounds).

    `^E` stands where a kind may also be given as its tower's rows, `+` where a prompt may have several; `T + I^E+`.
    """
    made = [processor for processor in processors if processor is not None]
    inputs = ["T"]
    for kind, letter in _LETTERS.items():
        if any(kind in processor.takes for processor in made):
            rows = "E" if any(kind in processor.embeds for processor in made) else ""
            several = "+" if any(processor.takes.get(kind, 1) is None for processor in made) else ""
            inputs.append(letter + (f"^{rows}{several}" if rows or several else ""))
    return " + ".join(inputs)


def _inputs(architecture: Architecture, found: Conformance) -> str:
    media = architecture.media
    return inputs_of(media) if media is None or isinstance(media, type) else found.inputs or "T"


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
                "inputs": _inputs(a, of),
                "tasks": ", ".join(a.tasks),
                "golden cases": of.golden_cases,
                "GGUF": a.gguf.arch if a.gguf else a.read_as,
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
        print(f"{'architecture':38s} {'inputs':16s} {'tasks':20s} {'golden':6s} {'GGUF':12s} {'prefix':6s} models")
        for r in rows():
            print(
                f"{r['architecture']:38s} {r['inputs']:16s} {r['tasks']:20s} {r['golden cases']!s:6s} "
                f"{r['GGUF']:12s} {r['prefix caching']:6s} {r['models']}"
            )
        print("\nT text, I pictures, V films, A sounds; E also as embeddings, + several in a prompt.")
        print("--format markdown and --format json tell more: example checkpoints, other names.")
    return 0
