"""Values that a server must bear: each ends with an answer or an error of the client's, and nothing else is hurt.

`VALUES` and `KEYS` are JSON texts, since much of it is nothing that Python would write. `bodies` puts each of them into
each field of an endpoint, as the server's own OpenAPI document describes it, so that a new field is tried by itself.
`BODIES` are what no schema tells of: add to them what one endpoint has trouble with.
"""

# JSON is full of braces: its templates are filled with %.
# ruff: noqa: UP031
import json
from collections.abc import Iterator
from typing import Any

MARK = "@hostile@"
"""Stands for the hostile text while a body is put together."""

VALUES: dict[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "fraction": "1.5",
    "beyond 32 bits": str(2**31),
    "the largest integer": str(2**63 - 1),
    "beyond 64 bits": str(2**63),
    "below 64 bits": str(-(2**63) - 1),
    "beyond unsigned 64 bits": str(2**64),
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "the largest float": "1e308",
    "beyond floats": "1e999",
    "below floats": "-1e999",
    "not a number": "NaN",
    "infinite": "-Infinity",
    "empty text": '""',
    "text": '"x"',
    "blank text": '" "',
    "a number's text": '"5"',
    "text of nan": '"nan"',
    "a high surrogate": '"\\ud800"',
    "a low surrogate in text": '"a\\udc80b"',
    "a pair the wrong way": '"\\udc00\\ud800"',
    "zero byte": '"\\u0000"',
    "marks of direction": '"\\u202e\\u2066\\u009b31m"',
    "long text": json.dumps("long " * 5000),
    "list": "[]",
    "list of null": "[null]",
    "list of lists": "[[], [[]]]",
    "list of fractions": "[1.5]",
    "list of large integers": f"[1, {2**64}]",
    "list of a negative integer": "[-1]",
    "list of surrogates": '["a", "\\udfff"]',
    "list of objects": "[{}]",
    "list of many kinds": '["a", 1, null, {"a": []}]',
    "object": "{}",
    "object of null": '{"": null}',
    "object with a surrogate": '{"a": {"\\ud83d": 1}}',
    "object with a large integer": f'{{"type": "integer", "maximum": {10**30}}}',
    "object with a long key": json.dumps({"k" * 60_000: 1}),
    "object of another type": '{"type": "x", "function": 5, "name": [], "json": 7}',
    "deep list": "[" * 90 + "]" * 90,
    "too deep a list": "[" * 100_000 + "]" * 100_000,
    "too deep an object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "unfinished depth": "[" * 100_000,
}

KEYS: dict[str, str] = {
    "empty key": '""',
    "key with a surrogate": '"\\ud800"',
    "long key": json.dumps("k" * 60_000),
    "key of a private name": '"__class__"',
    "key of self": '"self"',
    "key of a number beyond 64 bits": json.dumps("9" * 30),
    "key of 5000 digits": json.dumps("9" * 5000),
    "key of other digits": '"\\u0661"',
}

_MESSAGE = '"messages": [{"role": "user", "content": "x"}]'
_CALL = '"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": %s}]'
_SCHEMA = _MESSAGE + ', "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}'

BODIES: list[tuple[str, str]] = [
    *(("/v1/completions", text) for text in ("5", "null", "[]", '"x"', "{", "", " ", '{"prompt": "x"} x', "\ufeff{}")),
    *(("/v1/chat/completions", '{"messages": [%s]}' % text) for text in VALUES.values()),
    *(("/v1/chat/completions", '{"messages": [{"role": %s, "content": "x"}]}' % text) for text in VALUES.values()),
    *(("/v1/chat/completions", '{"messages": [{"role": "user", "content": %s}]}' % text) for text in VALUES.values()),
    *(
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": [{"type": "text", "text": %s}]}]}' % text)
        for text in VALUES.values()
    ),
    *(("/v1/chat/completions", "{%s}" % (_CALL % text)) for text in VALUES.values()),
    *(("/v1/chat/completions", "{%s}" % (_CALL % ('[{"function": %s}]' % text))) for text in VALUES.values()),
    *(
        ("/v1/chat/completions", "{%s}" % (_CALL % ('[{"function": {"name": "f", "arguments": %s}}]' % text)))
        for text in [*VALUES.values(), *(json.dumps(text) for text in VALUES.values())]
    ),
    *(("/v1/chat/completions", "{%s}" % (_SCHEMA % text)) for text in VALUES.values()),
    *(
        ("/v1/chat/completions", "{%s}" % (_SCHEMA % ('{"type": "object", "properties": {"a": %s}}' % text)))
        for text in VALUES.values()
    ),
    *(("/v1/completions", '{"prompt": "x", "guided_json": %s}' % json.dumps(text)) for text in VALUES.values()),
    *(
        ("/v1/chat/completions", '{%s, "chat_template_kwargs": {"%s": 1}}' % (_MESSAGE, name))
        for name in ("messages", "tools", "tokenizer", "template", "chat_template", "tokenize", "self", "loop", "range")
    ),
    *(
        ("/v1/chat/completions", '{%s, "chat_template_kwargs": {"%s": %s}}' % (_MESSAGE, name, text))
        for name in ("add_generation_prompt", "continue_final_message", "raise_exception", "bos_token")
        for text in ("null", "5", '"x"', "[]")
    ),
]
"""Endpoint and body."""


def bodies(document: dict[str, Any], path: str, sound: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Hostile bodies of an endpoint: the field at fault, what is wrong with it, and the body as JSON.

    Args:
        document: the server's OpenAPI document.
        sound: a body that the endpoint answers.
    """
    media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    for place, value, what, text in _variants(media["schema"], document, ()):
        if place:
            body = json.dumps({**value, **sound, place[0]: value[place[0]]})
            yield ".".join(place), what, body.replace(f'"{MARK}"', text)


def _variants(
    schema: dict[str, Any], document: dict[str, Any], place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, str, str]]:
    """Values of a schema with one hostile text in them: its place, the value with the mark, its name and the text."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    options = schema.get("anyOf", [schema])
    if options != [schema]:
        yield from ((place, MARK, what, text) for what, text in VALUES.items())
        for option in options:
            yield from (v for v in _variants(option, document, place) if v[1] != MARK)
        return
    if "properties" not in schema:
        yield from ((place, MARK, what, text) for what, text in VALUES.items())
    needed = {name: _sample(of, document) for name, of in schema.get("properties", {}).items()}
    needed = {name: value for name, value in needed.items() if name in schema.get("required", ())}
    for name, of in schema.get("properties", {}).items():
        for where, value, what, text in _variants(of, document, (*place, name)):
            yield where, {**needed, name: value}, what, text
    if "items" in schema:
        for where, value, what, text in _variants(schema["items"], document, place):
            yield where, [value], what, text
    if schema.get("type") == "object" and schema.get("additionalProperties"):
        yield from ((place, {MARK: 1}, what, text) for what, text in KEYS.items())
        yield from ((place, {"1": MARK}, what, text) for what, text in VALUES.items())


def _sample(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value that a schema allows."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], document)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        return {name: _sample(properties[name], document) for name in schema.get("required", ())}
    return {"string": "x", "integer": 1, "number": 1.0, "boolean": True}.get(schema["type"], [])
