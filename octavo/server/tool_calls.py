"""Tool calls as values: read from JSON that a model wrote, and written for clients."""

import json
import math
import secrets
import string
from typing import Any

from octavo.server.json_scanner import JsonScanner, Scan
from octavo.server.markers import is_text


def new_id() -> str:
    """The id of a call. It has nine letters and digits: Mistral's templates refuse any other when it is sent back."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def call(name: str, arguments: str, id: str | None = None, index: int | None = None) -> dict[str, Any]:
    """A tool call as OpenAI's clients read it; arguments are JSON text."""
    tool_call = {"id": id or new_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
    return tool_call if index is None else {"index": index, **tool_call}


def dump(value: Any) -> str:
    """JSON text."""
    text = json.dumps(value, ensure_ascii=False)
    # Half of a surrogate pair, which only an escape can write, is no text in UTF-8: it stays an escape.
    return text if is_text(text) else json.dumps(value)


def finite(text: str) -> float:
    """A number that is not infinite. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def loads(text: str) -> Any:
    """The value that JSON text is. Raises ValueError for what is none, or nests too deeply."""
    text = text.strip()
    if text[:1] in ("{", "["):
        scanner = JsonScanner()
        if any(scanner.take(c) is not Scan.MORE for c in text[:-1]) or scanner.take(text[-1]) is not Scan.DONE:
            raise ValueError("this is no JSON")
    return json.loads(text, parse_float=finite, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def is_arguments(text: str) -> bool:
    """Whether JSON text, which does not nest too deeply, is an object that can be read."""
    try:
        return isinstance(json.loads(text, parse_float=finite, parse_constant=_no_constant), dict)
    except ValueError:  # a number of more digits than Python reads, for example
        return False


def read_arguments(value: Any) -> dict[str, Any] | None:
    """Arguments given as an object, or as the text of one; None for anything else."""
    if isinstance(value, str) and value.strip():
        try:
            value = loads(value)
        except ValueError:
            return None
    if value is None or value == "":
        return {}
    return value if isinstance(value, dict) else None
