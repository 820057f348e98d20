"""What an answer must follow."""

import json
from dataclasses import dataclass, fields
from typing import Any

from octavo.errors import InvalidRequestError, names_closest
from octavo.params.checks import reject


@names_closest
@dataclass
class StructuredOutputsParams:
    """What an answer must follow: one of these. vLLM's GuidedDecodingParams is the same under its older name.

    Raises InvalidRequestError at construction unless exactly one is given.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    choice: list[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """In Lark's or GBNF's notation."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Text in which what stands between certain marks follows a schema, in xgrammar's notation."""
    preamble: str | None = None
    """What comes before it, and is no part of it, such as a thought: a grammar in Lark's notation, of which the answer
    itself is `@answer`. It belongs to whoever knows the model's formats, and is no way of saying what to follow."""

    def __post_init__(self) -> None:
        known = [f.name for f in fields(self) if f.name != "preamble"]
        given = [name for name in known if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(known)
            reject(f"structured_outputs needs exactly one of {names}; it has {', '.join(given) or 'none'}.")
        for name in ("json", "structural_tag"):
            if (value := getattr(self, name)) is not None and not isinstance(value, (str, dict)):
                what = "a schema" if name == "json" else "a structural tag"
                reject(f"structured_outputs: {name} must be {what}, as a text or a dict.")
        for name in ("regex", "grammar"):
            if (text := getattr(self, name)) is not None and (not isinstance(text, str) or not text):
                reject(f"structured_outputs: {name} must be a text that is not empty.")
        if self.json_object is not None and not isinstance(self.json_object, bool):
            reject("structured_outputs: json_object must be True.")
        if self.choice is None:
            return
        if not isinstance(self.choice, (list, tuple)) or any(not isinstance(c, str) or not c for c in self.choice):
            reject("structured_outputs: choice must be a list of texts, none of them empty.")
        if not self.choice:
            reject("structured_outputs: choice is an empty list; give at least one text.")

    def as_grammar(self) -> tuple[str, str]:
        """The kind of grammar and its text: a schema, and the list of a choice, are JSON.

        Raises InvalidRequestError for a schema that is not JSON and for text that is not Unicode.
        """
        kind, text = self._as_text()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            name = kind.replace("_", " ")
            raise InvalidRequestError(f"structured_outputs: this {name} is not valid Unicode: {error}") from error
        return (kind, text) if self.preamble is None else ("answer", json.dumps([self.preamble, kind, text]))

    def _as_text(self) -> tuple[str, str]:
        if self.structural_tag is not None:
            return "structural_tag", _as_json(self.structural_tag, "structural tag")
        if self.json is not None or self.json_object:
            return "json_schema", _as_json({"type": "object"} if self.json is None else self.json, "schema")
        if self.choice is not None:
            return "choice", json.dumps(self.choice, ensure_ascii=False)
        return ("regex", self.regex) if self.regex is not None else ("grammar", str(self.grammar))


GuidedDecodingParams = StructuredOutputsParams


def _as_json(value: str | dict[str, Any], what: str) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"structured_outputs: the {what} is not JSON: {error}") from error
