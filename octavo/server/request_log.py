"""The request log: a line of JSON for each HTTP request, with what it was about."""

import json
import logging
from contextvars import ContextVar
from typing import Any

log = logging.getLogger("octavo.requests")

Fields = dict[str, Any]

_fields: ContextVar[Fields | None] = ContextVar("fields", default=None)


def begin_request_log() -> Fields:
    """The fields of a line; what this task passes to `add_to_request_log` from now on is added to them."""
    fields: Fields = {}
    _fields.set(fields)
    return fields


def add_to_request_log(**values: Any) -> None:
    """Add fields to the line of this HTTP request. Numbers of several runs are added up."""
    fields = _fields.get()
    if fields is not None:
        for key, value in values.items():
            fields[key] = fields.get(key, 0) + value if isinstance(value, int) else value


def write_request_log(fields: Fields) -> None:
    """Write the line."""
    log.info(printable(json.dumps(fields, ensure_ascii=False)))


def printable(line: str) -> str:
    """JSON whose controls, marks of direction and lone surrogates are escaped; what people read stays as it is."""

    def escaped(char: str) -> str:
        units = char.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))

    return line if line.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in line)
