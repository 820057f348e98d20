"""The request log: a line of JSON for each HTTP request, with what it was about."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from octavo.client.output_processor import Answer
from octavo.server.log_options import LogOptions

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


def changed_values(params: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as they are by default, as text where JSON has no such values."""
    changed = dict[str, Any]()
    for f in dataclasses.fields(params):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        value = getattr(params, f.name)
        if f.init and value != default and value not in ([], {}):
            plain = isinstance(value, (str, int, float, list, dict)) or value is None
            changed[f.name] = value if plain else str(value)
    return changed


def asked(options: LogOptions, params: Any, answers: Sequence[Answer]) -> Fields:
    """What the log has of a request's values and of its answers, by the server's options."""
    if not options.enable_log_requests:
        return {}
    fields: Fields = {"params": changed_values(params)}
    if options.enable_log_outputs:
        texts = ("" if answer.stream is None else answer.stream.text for answer in answers)
        fields["answers"] = [options.shortened(text) for text in texts]
    return fields


def write_request_log(fields: Fields) -> None:
    """Write the line."""
    log.info(printable(json.dumps(fields, ensure_ascii=False)))


def printable(line: str) -> str:
    """JSON whose controls, marks of direction and lone surrogates are escaped; what people read stays as it is."""

    def escaped(char: str) -> str:
        units = char.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))

    return line if line.isprintable() else "".join(c if c.isprintable() else escaped(c) for c in line)
