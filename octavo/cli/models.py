"""`octavo models`: the table of architectures, from the code itself."""

import argparse
import json

from octavo.architectures import all_architectures


def rows() -> list[dict[str, str]]:
    """One row for each architecture, by name."""
    return [
        {
            "architecture": name,
            "models": a.about,
            "examples": ", ".join(a.examples),
            "GGUF": a.gguf.arch if a.gguf else "",
        }
        for name, a in sorted(all_architectures().items())
    ]


def markdown() -> str:
    """The table as docs/models.md shows it."""
    table = rows()
    lines = ["| architecture | models | examples | GGUF |", "| --- | --- | --- | --- |"]
    lines += [f"| {r['architecture']} | {r['models']} | {r['examples']} | {r['GGUF']} |" for r in table]
    return "\n".join(lines)


def run(namespace: argparse.Namespace) -> int:
    if namespace.format == "json":
        print(json.dumps(rows(), indent=2))
    elif namespace.format == "markdown":
        print(markdown())
    else:
        for row in rows():
            print(f"{row['architecture']:24s} {row['models']:40s} {row['examples']}")
    return 0
