"""JSON schemas, closed: objects take no keys beyond those that the schema names, unless it says additionalProperties.

In JSON Schema's own terms every object is open, and a model that may invent keys does. A schema of several parts for
one object (allOf, anyOf, oneOf, $ref beside other keywords) takes the keys that any of its parts names.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

MAX_STEPS = 200_000
"""Most schemas to be looked at; one that is referred to counts each time that something else stands beside it."""

_GROUPS = ("anyOf", "oneOf")
_CHILD = ("items", "additionalItems", "additionalProperties", "contains", "unevaluatedProperties", "unevaluatedItems")
_CHILDREN = ("prefixItems",)
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


@dataclass(frozen=True)
class _Keys:
    """What a schema, with all its parts, says of an object's keys."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    is_open: bool = False
    """Whether a part has additionalProperties that allow some."""

    def __or__(self, other: "_Keys") -> "_Keys":
        return _Keys(self.names | other.names, self.patterns | other.patterns, self.is_open or other.is_open)


_NONE = _Keys()


def closed(schema: Any) -> Any:
    """A copy of `schema` in which objects with `properties` or `patternProperties` take no other keys.

    An object with neither takes any, and so does one with `additionalProperties`, as that says. Raises ValueError for
    a schema whose parts combine in too many ways, RecursionError for one that is nested too deeply.
    """
    return _Closer(schema).run()


class _Closer:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.copies: dict[tuple[str, _Keys], str] = {}
        self.added: dict[str, Any] = {}
        self.steps = 0

    def run(self) -> Any:
        schema = self.close(self.root, _NONE)
        if self.added:
            schema["$defs"] = {**(schema.get("$defs") or {}), **self.added}
        return schema

    def _count(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError("its parts combine in too many ways")

    def close(self, schema: Any, beside: _Keys) -> Any:
        """`schema` closed but for the keys of what stands beside it."""
        self._count()
        if not isinstance(schema, dict):
            return schema
        out = dict(schema)
        for key in _CHILD:
            if isinstance(schema.get(key), dict):
                out[key] = self.close(schema[key], _NONE)
        for key in ("items", *_CHILDREN):
            if isinstance(schema.get(key), list):
                out[key] = [self.close(s, _NONE) for s in schema[key]]
        for key in _NAMED:
            if isinstance(schema.get(key), dict):
                out[key] = {name: self.close(s, _NONE) for name, s in schema[key].items()}
        self._close_parts(schema, out, beside)
        return out

    def _close_parts(self, schema: dict[str, Any], out: dict[str, Any], beside: _Keys) -> None:
        own, parts = _own_keys(schema), self._parts(schema)
        said = {place: self._keys(part, frozenset()) for place, part in parts.items()}
        groups = {g: _union(k for (name, _), k in said.items() if name == g) for g in _GROUPS}
        alone = {place: k for place, k in said.items() if place[0] not in _GROUPS}
        for key in ("allOf", *_GROUPS):
            if isinstance(schema.get(key), list):
                out[key] = list(schema[key])
        for place, part in parts.items():
            others = _union(k for p, k in alone.items() if p != place)
            rest = beside | own | others | _union(k for g, k in groups.items() if g != place[0])
            if place[0] == "$ref":
                out["$ref"] = self._reference(schema["$ref"], part, rest)
            else:
                out[place[0]][place[1]] = self.close(part, rest)
        rest = beside | _union(said.values())
        has_keys = "properties" in schema or "patternProperties" in schema
        if has_keys and "additionalProperties" not in schema and not rest.is_open:
            _shut(out, own.names | rest.names, rest.patterns)

    def _reference(self, ref: str, target: Any, beside: _Keys) -> str:
        """The name of a definition that is closed but for the keys beside its reference."""
        if beside == _NONE or target is None:
            return ref
        key = (ref, beside)
        if key not in self.copies:
            name = self.copies[key] = f"octavo-{len(self.copies)}"
            self.added[name] = self.close(target, beside)
        return f"#/$defs/{self.copies[key]}"

    def _parts(self, schema: dict[str, Any]) -> dict[tuple[str, int], Any]:
        """The schemas that hold for the same value, by keyword and place in it."""
        parts: dict[tuple[str, int], Any] = {}
        for key in ("allOf", *_GROUPS):
            if isinstance(schema.get(key), list):
                parts.update({(key, i): s for i, s in enumerate(schema[key])})
        if isinstance(schema.get("$ref"), str):
            parts["$ref", 0] = self._resolve(schema["$ref"])
        return parts

    def _keys(self, schema: Any, seen: frozenset[str]) -> _Keys:
        """What a schema says of keys, in all its parts."""
        self._count()
        if not isinstance(schema, dict):
            return _NONE
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref in seen:
            return _NONE
        seen = seen | {ref} if isinstance(ref, str) else seen
        return _own_keys(schema) | _union(self._keys(part, seen) for part in self._parts(schema).values())

    def _resolve(self, ref: str) -> Any:
        """What a local reference names; None for others."""
        if not ref.startswith("#"):
            return None
        found = self.root
        for step in unquote(ref[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                return None
        return found


def _own_keys(schema: dict[str, Any]) -> _Keys:
    properties, patterns, required = (schema.get(k) for k in ("properties", "patternProperties", "required"))
    names = set(properties) if isinstance(properties, dict) else set()
    names |= {r for r in required if isinstance(r, str)} if isinstance(required, list) else set()
    more = schema.get("additionalProperties", False)
    return _Keys(frozenset(names), frozenset(patterns if isinstance(patterns, dict) else ()), more is not False)


def _union(keys: Any) -> _Keys:
    found = _NONE
    for k in keys:
        found = found | k
    return found


def _shut(schema: dict[str, Any], names: frozenset[str], patterns: frozenset[str]) -> None:
    """Let `schema` take its own keys and these, and no others."""
    schema["additionalProperties"] = False
    for keyword, known in (("properties", names), ("patternProperties", patterns)):
        own = schema.get(keyword, {})
        if isinstance(own, dict) and (missing := sorted(known - own.keys())):
            schema[keyword] = {**own, **dict.fromkeys(missing, True)}
