"""Every format of tool calls: found whole however the text is cut, told as it is written, and nothing lost."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.answer_events import Answer, CallArguments, Event, collect
from octavo.server.argument_types import argument_types, typed
from octavo.server.markers import Markers
from octavo.server.pythonic_calls import literal
from octavo.server.text_reader import NotACallError
from octavo.server.tool_formats import ALIASES, FORMATS, TOOL_PARSERS, named_format
from octavo.server.tool_parser import ToolParser
from tests.server.scripted import Said, byte_tokenizer, chat
from tests.server.tool_writers import ONE, ONLY_FIRST, SCHEMA, written

KINDS = sorted(FORMATS)
SCHEMAS = {"f": SCHEMA, "get.more-things_2": SCHEMA}
WEATHER = {"x": 'Rome, "it\'s"\n\ta < b \\ é', "n": 3, "u": None, "b": True, "l": [1, {"a": "b", "c": [None, 2.5]}]}


def feed(parser: ToolParser, pieces: list[str]) -> list[Event]:
    return [e for i, piece in enumerate(pieces) for e in parser.feed(piece, i == len(pieces) - 1)]


def read(kind: str, pieces: list[str]) -> Answer:
    return collect(feed(ToolParser(FORMATS[kind], SCHEMAS), pieces))


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    return [(one.name, json.loads(one.arguments)) for one in answer.calls]


def test_every_name_has_a_format_and_every_format_a_test() -> None:
    assert set(ONE) == set(FORMATS)
    assert set(ALIASES.values()) <= set(FORMATS)
    assert all(named_format(name) for name in TOOL_PARSERS if name not in ("auto", "none", "openai"))


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_every_format(kind: str) -> None:
    """Text before, two calls, text behind, in one piece, in single characters and in threes."""
    before = "" if kind in ONLY_FIRST else "Let me see.\n"
    said = written(kind, [("f", WEATHER), ("get.more-things_2", {})])
    text = f"{before}{said}\n\nDone."
    for size in (len(text), 1, 3):
        answer = read(kind, [text[i : i + size] for i in range(0, len(text), size)])
        assert calls_of(answer) == [("f", WEATHER), ("get.more-things_2", {})]
        assert answer.content.split() == f"{before} Done.".split()


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_told_as_they_are_written(kind: str) -> None:
    """Before the call's last characters have come, most of its arguments have; whole arguments at the latest."""
    text = ONE[kind]("f", {"n": 7, "x": "word " * 50, "b": True})
    parser = ToolParser(FORMATS[kind], SCHEMAS)
    at = text.index("word ") + 250
    told = "".join(e.text for e in feed(parser, [*text[: at + 15]]) if isinstance(e, CallArguments))
    assert '"n": 7' in told
    if kind not in ("lfm2", "llama4_pythonic", "olmo3", "pythonic"):  # Python's strings are told whole
        assert told.count("word ") >= 49


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(-1e6, 1e6)
    | st.text("ab \n'\"\\{}[](),:é", max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "x": st.text("ab \n'\"\\{}[](),:;=é<", max_size=20),
        "n": st.integers(-(10**20), 10**20),
        "u": st.none() | st.floats(-1e9, 1e9),
        "b": st.booleans(),
        "l": st.lists(values, max_size=3),
    },
)
prose = st.text("ab .,\né", max_size=12)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(KINDS), prose, st.lists(arguments, min_size=1, max_size=3), prose)
def test_calls_and_prose_are_told_apart(
    data: st.DataObject, kind: str, before: str, given: list[dict[str, Any]], behind: str
) -> None:
    before = "" if kind in ONLY_FIRST else before
    text = before + written(kind, [("f", values) for values in given]) + behind
    answer = read(kind, data.draw(cut(text)))
    assert calls_of(answer) == [("f", values) for values in given]
    assert "".join(answer.content.split()) == "".join((before + behind).split())


def scraps(kind: str) -> list[str]:
    """Parts of calls, and of their markers."""
    whole = written(kind, [("f", {"x": "a", "n": 1, "l": [1, "b"]}), ("f", {})])
    parts = [whole[i : i + size] for size in (1, 5, 17) for i in range(0, len(whole), size)]
    return sorted({*FORMATS[kind].markers, *parts, whole, "f", "{", "}", "[", "(", "=", '"', " ", "\n", "a"} - {""})


SCRAPS = {kind: scraps(kind) for kind in KINDS}


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_any_text_is_the_same_in_any_pieces_and_nothing_is_lost(data: st.DataObject, kind: str) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(SCRAPS[kind]), max_size=14)))
    whole = read(kind, [text])
    assert read(kind, data.draw(cut(text))) == whole
    assert read(kind, [*text, ""]) == whole
    assert all(isinstance(json.loads(one.arguments), dict) for one in whole.calls)
    if not whole.calls:
        assert whole.content == text


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.text(max_size=60))
def test_text_that_calls_nothing_is_text(data: st.DataObject, kind: str, text: str) -> None:
    answer = read(kind, data.draw(cut(text)))
    assert (answer.content, answer.calls) == (text, [])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), arguments, st.integers(0, 400))
def test_a_stream_that_breaks_off_has_told_all_of_it(kind: str, given: dict[str, Any], at: int) -> None:
    """What was told of a call stays told; whole, a call that breaks off is text."""
    text = ONE[kind]("f", given)[:at]
    answer = read(kind, [text])
    assert answer.content == text or calls_of(answer) == [("f", given)]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_the_request_are_seen(kind: str) -> None:
    """Markers that are special tokens, whole and streamed; one call where one is allowed; ids."""
    markers = [m for m in FORMATS[kind].markers if len(m) > 8]
    tokenizer = byte_tokenizer("</s>", *markers)
    text = written(kind, [("f", WEATHER), ("f", {"n": 1})])
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    for more, want in (({}, [WEATHER, {"n": 1}]), ({"parallel_tool_calls": False}, [WEATHER])):
        body = {"tools": tools, **more}
        whole, streamed = chat(tokenizer, [tokenizer.encode(text)], body, tool_parser=kind, reasoning_parser="none")
        assert whole == streamed == [Said("", [("f", values) for values in want], "tool_calls")]
        assert len(set(streamed[0].ids)) == (1 if kind == "kimi_k2" else len(want))
    if kind == "kimi_k2":
        assert whole[0].ids == ["functions.f:0"]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, " 5 ", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "2.50", 2.5),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "null"}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["integer", "string"]}, "5", 5),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, "[1, 2]", [1, 2]),
        ({"type": "array"}, "['a', True, None]", ["a", True, None]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "object"}, "{'a': 1}", {"a": 1}),
        ({"type": "object"}, "[" * 500, "[" * 500),
        ({"type": "object"}, "{" + "'a':{" * 300 + "}" * 301, "{" + "'a':{" * 300 + "}" * 301),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": True}, "true", True),
        ({"properties": {}}, "{}", {}),
        ({"$ref": "#/$defs/n"}, "3", 3),
        ({"$ref": "#/$defs/loop"}, "3", "3"),
        ({"$ref": "other.json"}, "3", "3"),
        ({}, "3", "3"),
        (True, "3", "3"),
        ("nonsense", "3", "3"),
    ],
)
def test_values_that_are_text_get_the_types_of_the_schema(schema: Any, text: str, value: Any) -> None:
    root = {"properties": {"x": schema}, "$defs": {"n": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert json.loads(typed(text, argument_types(root, "x"))) == value


def test_types_of_tools_that_are_not_known() -> None:
    for schema in (None, {}, [], {"properties": []}, {"properties": None}):
        assert argument_types(schema, "x") == {"string"}
    assert argument_types({"additionalProperties": {"type": "integer"}}, "x") == {"integer"}


def test_python_literals() -> None:
    assert json.loads(literal("{'a': [1, -2.5, (True, None)], 'b': true, 'c': null}")) == {
        "a": [1, -2.5, [True, None]],
        "b": True,
        "c": None,
    }
    for text in (
        "f()",
        "a.b",
        "1 + 1",
        "{1: 2}",
        "b'x'",
        "f'{x}'",
        "1e999",
        "9" * 5000,
        "-" * 9000 + "1",
        "lambda: 1",
        "",
    ):
        with pytest.raises(NotACallError):
            literal(text)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_and_long_calls_end(kind: str) -> None:
    for inner in ("[" * 5000, '{"a":' * 5000, "(" * 5000, "{a:" * 5000):
        text = ONE[kind]("f", {"l": [1]}).replace("[1]", inner)
        assert read(kind, [text[i : i + 100] for i in range(0, len(text), 100)]) == read(kind, [text])


def test_beginnings_of_markers() -> None:
    markers = Markers("<tool>", "</tool>")
    assert [markers.begun(text) for text in ("a<", "<to", "<tool>", "</", "a", "")] == [1, 3, 0, 2, 0, 0]
