"""Tool calls as values: read from JSON that a model wrote, and written for clients."""

import json
import math
import re
import secrets
import string
from collections.abc import Collection
from typing import Any

from octavo.server.json_scanner import JsonScanner, Scan

Calls = list[tuple[str, Any]]
"""Names, and arguments as they were read from JSON."""
SURROGATE = re.compile("[\ud800-\udfff]")


def call(name: str, arguments: Any, index: int | None = None) -> dict[str, Any]:
    """A tool call as OpenAI's clients read it; arguments are JSON text.

    Its id has nine letters and digits: Mistral's templates refuse any other when the client sends it back.
    """
    text = arguments if isinstance(arguments, str) else _dump(arguments)
    tool_call = {
        "id": "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9)),
        "type": "function",
        "function": {"name": name, "arguments": text},
    }
    return tool_call if index is None else {"index": index, **tool_call}


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # Half of a surrogate pair, which only an escape can write, is no text in UTF-8: it stays an escape.
    return text if is_text(text) else json.dumps(value)


def is_text(value: str) -> bool:
    return SURROGATE.search(value) is None


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def read_calls(text: str, tools: Collection[str] | None = None, strict: bool = False) -> Calls | None:
    """Calls in JSON: an object or a list of them, with `name` and `arguments` or `parameters`; None for what is none.

    With `strict`, only what names one of the `tools` (any, if None) and has arguments.
    """
    try:
        value = json.loads(text, parse_float=finite)
    except ValueError:  # a number of more digits than Python reads, for example
        return None
    calls = Calls()
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            return None
        name, key = item.get("name"), "arguments" if "arguments" in item else "parameters"
        if not isinstance(name, str) or not name or not is_text(name):
            return None
        if strict and (key not in item or (tools is not None and name not in tools)):
            return None
        arguments = read_arguments(item.get(key))
        if arguments is None:
            return None
        calls.append((name, arguments))
    return calls or None


def read_arguments(value: Any) -> dict[str, Any] | None:
    """Arguments given as an object, or as the text of one; None for anything else."""
    if isinstance(value, str) and value.strip():
        scanner, text = JsonScanner(), value.strip()
        if any(scanner.take(c) is not Scan.MORE for c in text[:-1]) or scanner.take(text[-1]) is not Scan.DONE:
            return None
        try:
            value = json.loads(text, parse_float=finite)
        except ValueError:
            return None
    if value is None or value == "":
        return {}
    return value if isinstance(value, dict) else None
