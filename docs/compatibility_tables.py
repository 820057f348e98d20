"""The tables of docs/compatibility.md: what Octavo does with each flag, endpoint and parameter that vLLM has.

What vLLM has is data of the tests; what Octavo has is asked of the parser and of the application.
"""

import argparse
import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.cli.main import build_parser
from octavo.cli.vllm_flags import Taken
from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
MARKED = re.compile(r"(<!-- (\w+): made by `make docs` -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
FLAGS = ROOT / "tests" / "cli" / "vllm_serve_flags.txt"
ENDPOINTS = ROOT / "tests" / "server" / "vllm_endpoints.txt"
NEEDS_MORE = ("ssl", "disable_", "enable_ssl", "skip_", "page")
"""Beginnings of switches that open no endpoint, or that need others."""


def rows(path: Path) -> list[list[str]]:
    """The lines of a list of vLLM's, as words."""
    return [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]


def cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def flags() -> str:
    """vLLM's flags of `serve`."""
    commands: Any = build_parser()._subparsers
    known = commands._group_actions[0].choices["serve"].flags
    lines = ["| flag | what Octavo does |", "| --- | --- |"]
    for *names, _ in rows(FLAGS):
        spelled = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {spelled} | {cell(_does(known[names[0]], names[0]))} |")
    return "\n".join(lines)


def _does(action: argparse.Action, name: str) -> str:
    if not isinstance(action, Taken):
        own = next(flag for flag in action.option_strings if flag.startswith("--"))
        return str(action.help) if own == name else f"as `{own}`: {action.help}"
    if action.option.taken is None:
        return f"accepted, without effect: {action.option.why}"
    return f"refused: {action.option.why}"


class Everything(Service):
    """A service of a model that takes all kinds of media."""

    media_kinds = property(lambda self: ["image", "video", "audio"])  # type: ignore[assignment]


def described(**options: Any) -> dict[str, Any]:
    """The OpenAPI document of a server with these options."""
    app: Any = create_app(Everything(EngineArgs("model"), ServerOptions(**options)))
    while not hasattr(app, "openapi"):
        app = app.app
    return app.openapi()  # type: ignore[no-any-return]


def openers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Options that may open endpoints: what people write, and the values."""
    for f in dataclasses.fields(ServerOptions):
        flag = "--" + f.name.replace("_", "-")
        if f.type in (bool, bool | None) and f.default in (False, None) and not f.name.startswith(NEEDS_MORE):
            yield f"`{flag}`", {f.name: True}
        elif f.name.endswith("_folder"):
            yield f"`{flag}`", {f.name: tempfile.mkdtemp()}


@functools.cache  # some seconds of a dozen applications
def opened() -> tuple[dict[str, Any], dict[str, str]]:
    """The document with all endpoints that any option opens, and by their paths which one does."""
    whole, behind = described(), dict[str, str]()
    for said, options in [*openers(), ("`VLLM_SERVER_DEV_MODE=1`", {})]:
        if not options:
            os.environ["VLLM_SERVER_DEV_MODE"] = "1"
        try:
            found = described(**options)
        except ConfigError:  # it needs others
            continue
        finally:
            os.environ.pop("VLLM_SERVER_DEV_MODE", None)
        for path in found["paths"].keys() - whole["paths"].keys():
            behind[path] = said
            whole["paths"][path] = found["paths"][path]
        whole["components"]["schemas"] |= found["components"]["schemas"]
    return whole, behind


def endpoints() -> str:
    """Endpoints of both."""
    whole, behind = opened()
    lines = ["| endpoint | what Octavo does |", "| --- | --- |"]
    for path in sorted({words[0] for words in rows(ENDPOINTS)} | whole["paths"].keys()):
        here = whole["paths"].get(path)
        if here is None:
            text = "not there"
        else:
            text = "; ".join(dict.fromkeys(str(one.get("summary", "")) for one in here.values()))
            text += f" (with {behind[path]})" if path in behind else ""
        lines.append(f"| `{path}` | {cell(text)} |")
    return "\n".join(lines)


def properties(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The parameters of an endpoint's requests, with what is said of them."""
    body = document["paths"].get(path, {}).get("post", {}).get("requestBody", {})
    schema = next(iter(body.get("content", {}).values()), {}).get("schema", {})
    found = dict[str, Any]()
    for one in [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]:
        named = one.get("$ref", "").rpartition("/")[2]
        found |= (document["components"]["schemas"][named] if named else one).get("properties", {})
    return {name.removesuffix("[]"): value for name, value in found.items()}


def parameters() -> str:
    """Parameters of requests: who takes them, and where vLLM takes them and Octavo does not."""
    document, _ = opened()
    theirs = {path: set(names) for path, *names in rows(ENDPOINTS) if names}
    ours = {path: properties(document, path) for path in document["paths"]}
    names = sorted(set[str]().union(*theirs.values(), *ours.values()))
    lines = ["| parameter | taken by | in vLLM also, and ignored here | what it is |", "| --- | --- | --- | --- |"]
    for name in names:
        taken = [path for path in sorted(ours) if name in ours[path]]
        ignored = [
            path for path in sorted(theirs) if name in theirs[path] and ours.get(path) and name not in ours[path]
        ]
        told = next((text for path in taken if (text := ours[path][name].get("description"))), "")
        shown = [", ".join(f"`{path}`" for path in of) for of in (taken, ignored)]
        if taken or ignored:
            lines.append(f"| `{name}` | {shown[0]} | {shown[1]} | {cell(told)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """The page with its tables. Raises ValueError if it lacks a place for one."""
    made = {"flags": flags, "endpoints": endpoints, "parameters": parameters}
    filled, count = MARKED.subn(lambda m: f"{m[1]}{made[m[2]]()}\n{m[3]}", text)
    if count != len(made):
        raise ValueError(f"{PAGE} has places for {count} of {len(made)} tables")
    return filled
