"""Arguments of tools that a model writes as text, typed by the tools' JSON schemas."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from octavo.server.tool_calls import dump, finite, loads

TEXT = frozenset({"string"})
_KINDS = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
_OF_PYTHON = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", dict: "object"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})")
MAX_REFERENCES = 32
"""References that are followed, one after the other, to find a type."""
LITERAL_MOST = 1 << 16
"""Characters of a value that is read as Python writes it."""


def argument_types(schema: Any, name: str) -> frozenset[str]:
    """The JSON types that an argument of this name may have: text where the tool's schema does not say."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    own = properties.get(name) if isinstance(properties, Mapping) else None
    if own is None and isinstance(schema, Mapping):
        own = schema.get("additionalProperties")
    return _types(own, schema, MAX_REFERENCES) or TEXT


def _types(schema: Any, root: Any, left: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or left == 0:
        return frozenset()
    if isinstance(ref := schema.get("$ref"), str):
        return _types(_referred(ref, root), root, left - 1)
    kind = schema.get("type")
    if kind is not None:
        return frozenset(k for k in (kind if isinstance(kind, list) else [kind]) if isinstance(k, str)) & _KINDS
    found = frozenset[str]()
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema[key] if isinstance(schema.get(key), list) else ():
            found |= _types(part, root, left - 1)
    values = schema.get("enum") if isinstance(schema.get("enum"), list) else []
    for value in [*(values or []), *([schema["const"]] if "const" in schema else [])]:
        found |= {_OF_PYTHON.get(type(value), "array")}
    if not found and {"properties", "additionalProperties"} & schema.keys():
        return frozenset({"object"})
    return found or (frozenset({"array"}) if "items" in schema else found)


def _referred(ref: str, root: Any) -> Any:
    if not ref.startswith("#"):
        return None
    for step in ref[1:].split("/")[1:]:
        root = root.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def typed(text: str, types: frozenset[str]) -> str:
    """The JSON text of a value that was written as `text`: of the first of the types that it can be, else a text."""
    plain = text.strip()
    word = plain.lower()
    if types == TEXT:
        return dump(text)
    if word in ("null", "none") and ("null" in types or "string" not in types):
        return "null"
    if "boolean" in types and word in ("true", "false"):
        return word
    if "integer" in types and _INTEGER.fullmatch(plain):
        return plain
    if "number" in types and (number := _number(plain)) is not None:
        return number
    if types - {"string", "boolean", "integer", "number", "null"} and (value := _value(plain)) is not None:
        return value
    return dump(text)


def _number(text: str) -> str | None:
    if _INTEGER.fullmatch(text):
        return text
    try:
        return dump(finite(text))
    except ValueError:
        return None


def _value(text: str) -> str | None:
    """An object or a list, as JSON or as Python writes it."""
    try:
        value = loads(text)
        return dump(value)
    except (ValueError, RecursionError):
        pass
    if not text.startswith(("{", "[", "(")) or len(text) > LITERAL_MOST:
        return None
    try:
        written = json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
        loads(written)  # which does not nest too deeply
        return written
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
