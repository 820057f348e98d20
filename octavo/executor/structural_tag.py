"""Structural tags as grammars of llguidance: text in which what stands between certain marks follows a schema.

The formats are xgrammar's, as vLLM takes them: https://xgrammar.mlc.ai/docs (structural tag).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST_DEPTH = 32
"""Formats within each other."""


class _Writer:
    """Writes one grammar.

    Args:
        to_grammar: the grammar of a kind and a text, in llguidance's notation.
        special: the special tokens by their texts, which no text contains.
    """

    def __init__(self, to_grammar: Callable[[str, str], str], special: Mapping[str, int]) -> None:
        self._to_grammar, self._special = to_grammar, special
        names = sorted((name for name in special if name), key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self.rules: list[str] = []
        self.others: list[dict[str, Any]] = []
        """Grammars of schemas and expressions, by name."""

    def literal(self, text: str) -> str:
        """A text as it is; what is a special token in it, as that."""
        parts = [text] if self._marks is None else self._marks.split(text)
        made = [f"<[{self._special[p]}]>" if p in self._special else json.dumps(p) for p in parts if p]
        return " ".join(made) or '""'

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}{attributes}: {body}")
        return name

    def until(self, mark: str) -> str:
        """Any text up to the first place of a mark, and the mark."""
        first = next((m[0] for m in [self._marks.search(mark)] if m), None) if self._marks is not None else None
        if first is None:
            return self._rule(f"ANY {json.dumps(mark)}", "[lazy]")
        before, _, behind = mark.partition(first)
        return " ".join(["ANY" if not before else self.until(before), self.literal(first + behind)])

    def _of_kind(self, kind: str, text: str) -> str:
        grammar, name = self._to_grammar(kind, text), f"other_{len(self.others)}"
        own = json.loads(grammar)["grammars"] if grammar.lstrip().startswith("{") else [{"lark_grammar": grammar}]
        if len(own) != 1:
            raise ValueError("a grammar within a structural tag may not have further ones")
        self.others.append({**own[0], "name": name})
        return f"@{name}"

    def write(self, given: Any, depth: int = 0) -> str:
        """What follows a format. Raises ValueError for what is none."""
        kind = given.get("type") if isinstance(given, dict) else None
        write = _KINDS.get(kind) if isinstance(kind, str) else None
        if write is None or depth > MOST_DEPTH:
            raise ValueError(f"structural_tag: a format of type {kind!r:.60} is unknown; {', '.join(_KINDS)} are known")
        return write(self, given, depth)

    def schema(self, given: dict[str, Any], depth: int) -> str:
        return self._of_kind("json_schema", json.dumps(_part(given, "json_schema")))

    def expression(self, given: dict[str, Any], depth: int) -> str:
        return self._of_kind("regex", _text(given, "pattern"))

    def grammar(self, given: dict[str, Any], depth: int) -> str:
        return self._of_kind("grammar", _text(given, "grammar"))

    def text(self, given: dict[str, Any], depth: int) -> str:
        return self.literal(_text(given, "value"))

    def any_text(self, given: dict[str, Any], depth: int) -> str:
        return "ANY"

    def sequence(self, given: dict[str, Any], depth: int) -> str:
        return "(" + " ".join(self.write(one, depth + 1) for one in _items(given, "elements")) + ")"

    def either(self, given: dict[str, Any], depth: int) -> str:
        return "(" + " | ".join(self.write(one, depth + 1) for one in _items(given, "elements")) + ")"

    def optional(self, given: dict[str, Any], depth: int) -> str:
        return f"({self.write(_part(given, 'content'), depth + 1)})?"

    def many(self, given: dict[str, Any], depth: int) -> str:
        return f"({self.write(_part(given, 'content'), depth + 1)})*"

    def some(self, given: dict[str, Any], depth: int) -> str:
        return f"({self.write(_part(given, 'content'), depth + 1)})+"

    def tag(self, given: dict[str, Any], depth: int, behind: str = "") -> str:
        """A tag, or what of it comes behind the first characters of its beginning."""
        begin = _text(given, "begin")[len(behind) :]
        ends = given.get("end", "")
        ends = ends if isinstance(ends, list) and ends else [ends]
        if not all(isinstance(end, str) for end in ends):
            raise ValueError("structural_tag: the end of a tag is a text or a list of texts")
        content = given.get("content", {"type": "any_text"})
        if isinstance(content, dict) and content.get("type") == "any_text" and all(ends):
            body = "(" + " | ".join(self.until(end) for end in ends) + ")"
        else:
            body = f"{self.write(content, depth + 1)} (" + " | ".join(map(self.literal, ends)) + ")"
        return self._rule(f"{self.literal(begin)} {body}" if begin else body)

    def triggered(self, given: dict[str, Any], depth: int) -> str:
        """Any text; where a trigger comes, what goes on as one of the tags that begin so."""
        triggers, tags = _items(given, "triggers"), _items(given, "tags")
        behind_text, first = [], []
        for tag in tags:
            begin = _text(tag, "begin") if isinstance(tag, dict) else ""
            trigger = next((t for t in triggers if isinstance(t, str) and t and begin.startswith(t)), None)
            if trigger is None:
                raise ValueError(f"structural_tag: {begin!r:.60} begins with none of the triggers {triggers!r:.200}")
            behind_text.append(f"{self.until(trigger)} {self.tag(tag, depth + 1, trigger)}")
            first.append(self.tag(tag, depth + 1))
        later, begin = self._rule(" | ".join(behind_text)), self._rule(" | ".join(first))
        if given.get("stop_after_first"):
            return begin if given.get("at_least_one") else f"({later} | ANY)"
        return f"({begin} {later}* ANY)" if given.get("at_least_one") else f"({later}* ANY)"

    def separated(self, given: dict[str, Any], depth: int) -> str:
        """Tags, with a text between each two."""
        one = self._rule(" | ".join(self.tag(tag, depth + 1) for tag in _items(given, "tags")))
        more = "" if given.get("stop_after_first") else f" ({self.literal(_text(given, 'separator'))} {one})*"
        return f"({one}{more})" if given.get("at_least_one") else f"({one}{more})?"


_KINDS: dict[str, Callable[[_Writer, dict[str, Any], int], str]] = {
    "const_string": _Writer.text,
    "json_schema": _Writer.schema,
    "regex": _Writer.expression,
    "grammar": _Writer.grammar,
    "any_text": _Writer.any_text,
    "sequence": _Writer.sequence,
    "or": _Writer.either,
    "optional": _Writer.optional,
    "star": _Writer.many,
    "plus": _Writer.some,
    "tag": _Writer.tag,
    "triggered_tags": _Writer.triggered,
    "tags_with_separator": _Writer.separated,
}


def _part(given: dict[str, Any], name: str) -> Any:
    if name not in given:
        raise ValueError(f"structural_tag: {given.get('type')!r:.40} needs {name}")
    return given[name]


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise ValueError(f"structural_tag: {given.get('type', 'a tag')!r:.40} needs {name}, a text")
    return value


def _items(given: dict[str, Any], name: str) -> Sequence[Any]:
    value = given.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"structural_tag: {given.get('type')!r:.40} needs {name}, a list that is not empty")
    return value


def _format(given: dict[str, Any]) -> Any:
    """The format of a structural tag; the older kind, structures with triggers, is one of triggered tags."""
    if "structures" not in given:
        return given.get("format")
    tags = [
        {"begin": one.get("begin"), "end": one.get("end", ""), "content": _of_schema(one.get("schema"))}
        for one in _items(given, "structures")
        if isinstance(one, dict)
    ]
    return {"type": "triggered_tags", "triggers": given.get("triggers"), "tags": tags}


def _of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": schema or {}}


def tag_grammar(text: str, to_grammar: Callable[[str, str], str], special: Mapping[str, int]) -> str:
    """The grammar of a structural tag, given as JSON. Raises ValueError for what is none."""
    given, writer = json.loads(text), _Writer(to_grammar, special)
    if not isinstance(given, dict):
        raise ValueError("structural_tag is a JSON object")
    start = writer.write(_format(given))
    lark = "\n".join(["%llguidance {}", f"start: {start}", *writer.rules, "ANY: /(.|\\n)*/"])
    return json.dumps({"grammars": [{"lark_grammar": lark}, *writer.others]})
