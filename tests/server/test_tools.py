"""Tool calls in a model's text: found whole however it is cut, and text that only looks like one stays text."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import octavo.server.answer_reader as answer_reader
import octavo.server.json_calls as json_calls_module
import octavo.server.tool_calls as tool_calls_module
from octavo.server.answer_events import collect
from octavo.server.answer_reader import AnswerReaders
from octavo.server.forced_calls import ForcedParser, forced
from octavo.server.json_scanner import MAX_DEPTH, JsonScanner, Scan
from octavo.server.model_formats import model_formats
from octavo.server.protocol import ChatRequest
from octavo.server.tool_calls import call
from octavo.server.tool_formats import FORMATS, format_of
from octavo.server.tool_parser import ToolParser
from tests.server.running import Running
from tests.server.scripted import Said, byte_tokenizer, chat

CALL = {"name": "f", "arguments": {"x": "a < b", "n": [1, 2]}}
TEXT = json.dumps(CALL)
ARGUMENTS = json.dumps(CALL["arguments"])
LLAMA = json.dumps({"name": "f", "parameters": CALL["arguments"]})
TAG = json.dumps({"name": "f", "arguments": {"html": "</tool_call> [TOOL_CALLS] <|python_tag|> }{]["}})
TAGGED = [("f", {"html": "</tool_call> [TOOL_CALLS] <|python_tag|> }{]["})]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
KINDS = ("hermes", "mistral", "llama3_json")
Calls = list[tuple[str, Any]]


def made(kind: str, tools: list[str] | None = None, max_calls: int | None = None) -> ToolParser:
    return ToolParser(FORMATS[kind], None if tools is None else dict.fromkeys(tools), max_calls)


def run(parser: Any, pieces: list[str]) -> tuple[str, Calls]:
    answer = collect([e for i, piece in enumerate(pieces) for e in parser.feed(piece, i == len(pieces) - 1)])
    return answer.content, [(one.name, json.loads(one.arguments)) for one in answer.calls]


def cuts(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    places = sorted(rng.sample(range(1, len(text)), max(0, min(len(text) - 1, 6))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def same_however_cut(make: Callable[[], ToolParser], text: str) -> tuple[str, Calls]:
    """What the parser makes of a text that comes at once, which is what it makes of it in pieces."""
    whole = run(make(), [text])
    for pieces in (list(text), *(cuts(text, seed) for seed in range(20))):
        assert run(make(), pieces) == whole
    return whole


@pytest.mark.parametrize(
    ("kind", "text", "content", "count"),
    [
        ("hermes", f"Let me see.\n<tool_call>\n{TEXT}\n</tool_call>", "Let me see.\n", 1),
        ("hermes", f"<tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>", "", 2),
        ("hermes", f"<tool_call>{TEXT}", "", 1),
        ("hermes", f"<tool_call>{TEXT}</tool_", "", 1),
        ("hermes", f"<tool_call>{TEXT}\n<tool_call>{TEXT}</tool_call>", "", 2),
        ("hermes", f"<tool_call>[{TEXT}, {TEXT}]</tool_call>", "", 2),
        ("hermes", "a < b and <tool_call>no call</tool_call>", "a < b and <tool_call>no call</tool_call>", 0),
        ("hermes", "half a <tool", "half a <tool", 0),
        ("hermes", f"<tool_call>{TEXT}</tool_call>\nI have called it.", "\nI have called it.", 1),
        ("hermes", f"<tool_call>no</tool_call><tool_call>{TEXT}</tool_call>!", "<tool_call>no</tool_call>!", 1),
        ("hermes", f"<tool_call>{TEXT} so</tool_call>", " so</tool_call>", 1),
        ("hermes", f"<tool_call>{TEXT[:-1]}</tool_call>", f"<tool_call>{TEXT[:-1]}</tool_call>", 0),
        ("hermes", f"<<tool_call><tool_call>{TEXT}</tool_call>", "<<tool_call>", 1),
        ("hermes", f"In prose, {TEXT} is no call.", f"In prose, {TEXT} is no call.", 0),
        ("hermes", "\n\n", "\n\n", 0),
        ("hermes", f"\n\n<tool_call>{TEXT}</tool_call>\n", "", 1),
        ("hermes", "", "", 0),
        ("mistral", f"[TOOL_CALLS][{TEXT}, {TEXT}]", "", 2),
        ("mistral", f"[TOOL_CALLS] {TEXT}", "", 1),
        ("mistral", f"So [TOOL_CALLS] [{TEXT}] and more", "So  and more", 1),
        ("mistral", f"[TOOL_CALLS][{TEXT}]\n[TOOL_CALLS][{TEXT}]", "", 2),
        ("mistral", f"[TOOL_CALLS][{TEXT}, 5] yes", ", 5] yes", 1),
        ("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]", 0),
        ("mistral", f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}", "", 1),
        ("mistral", f"So: [TOOL_CALLS]f{ARGUMENTS}[TOOL_CALLS] f[CALL_ID]x1[ARGS] {ARGUMENTS} end", "So:  end", 2),
        ("mistral", "[TOOL_CALLS]no, that is none", "[TOOL_CALLS]no, that is none", 0),
        ("mistral", f"[TOOL_CALLS]a b{ARGUMENTS}", f"[TOOL_CALLS]a b{ARGUMENTS}", 0),
        ("mistral", "[TOOL_CALLS]f[ARGS][1]", "[TOOL_CALLS]f[ARGS][1]", 0),
        ("mistral", f"[TOOL_CALLS]f[ARGS][ARGS]{ARGUMENTS}", f"[TOOL_CALLS]f[ARGS][ARGS]{ARGUMENTS}", 0),
        ("mistral", f"[TOOL_CALLS]{'f' * 300}[TOOL_CALLS]f{ARGUMENTS}", f"[TOOL_CALLS]{'f' * 300}", 1),
        ("mistral", "an [array] of [TOOL_things", "an [array] of [TOOL_things", 0),
        ("llama3_json", LLAMA, "", 1),
        ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}", "", 2),
        ("llama3_json", f"{LLAMA}; that was it", "; that was it", 1),
        ("llama3_json", "<|python_tag|>print(1)", "<|python_tag|>print(1)", 0),
        ("llama3_json", 'JSON is {"a": 1} here', 'JSON is {"a": 1} here', 0),
        ("llama3_json", f"an {{open}} bracket {{ then {LLAMA}.", "an {open} bracket { then .", 1),
        ("llama3_json", 'a "quote { and ' + LLAMA, 'a "quote { and ', 1),
        ("llama3_json", '{"name": "f"} only', '{"name": "f"} only', 0),
        ("llama3_json", '{"name": 5, "parameters": {}}', '{"name": 5, "parameters": {}}', 0),
    ],
)
def test_calls_are_found_however_the_text_is_cut(kind: str, text: str, content: str, count: int) -> None:
    assert same_however_cut(lambda: made(kind), text) == (content, [("f", CALL["arguments"])] * count)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("hermes", f"<tool_call>{TAG}</tool_call>"),
        ("mistral", f"[TOOL_CALLS][{TAG}]"),
        ("llama3_json", f"<|python_tag|>{TAG}"),
        ("llama3_json", TAG),
    ],
)
def test_markers_and_brackets_inside_a_string_are_the_string(kind: str, text: str) -> None:
    assert same_however_cut(lambda: made(kind), text) == ("", TAGGED)


def test_json_in_prose_is_a_call_only_if_it_names_a_tool_and_has_arguments() -> None:
    def given_f() -> ToolParser:
        return made("llama3_json", ["f"])

    person = '{"name": "Ada", "parameters": {"born": 1815}}'
    assert same_however_cut(given_f, f"She is {person}.") == (f"She is {person}.", [])
    assert same_however_cut(given_f, '{"name": "f", "age": 3}') == ('{"name": "f", "age": 3}', [])
    assert same_however_cut(given_f, f"So: {LLAMA}") == ("So: ", [("f", CALL["arguments"])])
    # Behind a marker it is meant as a call; that there is no such tool is for the client to say.
    assert same_however_cut(given_f, f"<|python_tag|>{person}") == ("", [("Ada", {"born": 1815})])
    assert same_however_cut(given_f, '<|python_tag|>{"name": "f"}') == ("", [("f", {})])


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"x": 1}', {"x": 1}),
        (r'"{\"x\": \"\\u00e9\"}"', {"x": "é"}),
        ('"{}"', {}),
        ('""', {}),
        ("null", {}),
        ("{}", {}),
        ('"no JSON"', None),
        ('"[1]"', None),
        ('"{\\"x\\": 1} and more"', None),
        ("[1]", None),
        ("5", None),
        ('{"x": NaN}', None),
        ('{"x": 1e999}', None),
        ('{"x": ' + "9" * 5000 + "}", None),
        ('{"x": 01}', None),
        ("{'x': 1}", None),
        ('{"x": 1,}', None),
        ('{"x": "\n"}', None),
    ],
)
def test_arguments_are_an_object_or_the_text_of_one(arguments: str, read: Any) -> None:
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    assert same_however_cut(lambda: made("hermes"), text) == ((text, []) if read is None else ("", [("f", read)]))


def test_ids_are_what_every_template_takes() -> None:
    ids = {call("f", "{}")["id"] for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 9 and i.isascii() and i.isalnum() for i in ids)


def test_half_a_surrogate_pair_can_be_sent() -> None:
    answer = collect(made("hermes").feed(r'<tool_call>{"name": "f", "arguments": {"x": "\ud83d"}}</tool_call>', True))
    assert answer.content == ""
    written = answer.calls[0].arguments
    assert json.loads(written) == {"x": "\ud83d"}
    assert written.encode()
    name = r'<tool_call>{"name": "\ud83d", "arguments": {}}</tool_call>'
    assert run(made("hermes"), [name]) == (name, [])


def test_only_so_many_calls_as_are_allowed() -> None:
    text = f"<tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call> end"
    assert same_however_cut(lambda: made("hermes", max_calls=1), text) == (" end", [("f", CALL["arguments"])])
    assert same_however_cut(lambda: made("mistral", max_calls=1), f"[TOOL_CALLS][{TEXT}, {TEXT}]")[1] == [
        ("f", CALL["arguments"])
    ]


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[{"), max_size=12)
BROKEN = [
    *("<", "[", "{", "{{", '"', "}", "]", "\\", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[TOOL_CALLS][", "[]"),
    *(
        "<|python_tag|>",
        '{"name":',
        '{"a":[1,{"b":2}]}',
        "<tool_call>{",
        '<tool_call>{"name":"f"',
        TEXT[:-1],
        TEXT + "}",
    ),
]
broken = st.sampled_from(BROKEN)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(), json_values, max_size=3)


@st.composite
def split(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.lists(plain | broken | st.just(TEXT) | st.just(LLAMA), max_size=8))
def test_any_text_is_the_same_in_any_pieces(data: st.DataObject, kind: str, parts: list[str]) -> None:
    text = "".join(parts)
    whole = run(made(kind), [text])
    assert run(made(kind), data.draw(split(text))) == whole
    assert run(made(kind), [*text, ""]) == whole


def written(kind: str, name: str, values: dict[str, Any], draw: Callable[[Any], Any]) -> str:
    """A call as a model of the family writes it."""
    given_as_text = draw(st.booleans())
    value = json.dumps(values, ensure_ascii=draw(st.booleans())) if given_as_text else values
    key = draw(st.sampled_from(["arguments", "parameters"]))
    text = json.dumps({"name": name, key: value}, indent=draw(st.sampled_from([None, 2])), ensure_ascii=False)
    if kind == "hermes":
        space = draw(st.sampled_from(["", "\n", " "]))
        return f"<tool_call>{space}{text}{space}</tool_call>"
    if kind == "mistral":
        return f"[TOOL_CALLS][{text}]"
    return draw(st.sampled_from(["", "<|python_tag|>"])) + text


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(KINDS))
def test_prose_and_calls_lose_nothing(data: st.DataObject, kind: str) -> None:
    """Every call is found, and every character of the prose between them is content."""
    parts, prose, calls = [], "", []
    for _ in range(data.draw(st.integers(0, 4))):
        said = data.draw(plain)
        values = data.draw(arguments)
        parts += [said, written(kind, "f", values, data.draw)]
        prose += said
        calls.append(("f", values))
    last = data.draw(plain)
    content, found = run(made(kind, ["f"]), data.draw(split("".join([*parts, last]))))
    assert found == calls
    assert "".join(content.split()).replace(";", "") == "".join((prose + last).split()).replace(";", "")


@settings(max_examples=200, deadline=None)
@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_the_scanner_ends_where_the_value_ends(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps([value], ensure_ascii=ascii_only, indent=indent)
    scanner = JsonScanner()
    assert [scanner.take(c) for c in text] == [Scan.MORE] * (len(text) - 1) + [Scan.DONE]


@settings(max_examples=500, deadline=None)
@given(st.text('{}[]",:\\u0e1-.tfnrals \n', max_size=14))
def test_the_scanner_takes_what_python_reads_and_nothing_else(text: str) -> None:
    scanner, ends = JsonScanner(), None
    for i, char in enumerate(text):
        scan = scanner.take(char)
        if scan is not Scan.MORE:
            ends = i + 1 if scan is Scan.DONE else None
            break
    try:
        value, length = json.JSONDecoder().raw_decode(text)
    except ValueError:
        value, length = None, None
    assert ends == (length if isinstance(value, (list, dict)) else None)


class Counted(JsonScanner):
    """Counts what it is given."""

    taken = 0

    def take(self, char: str) -> Scan:
        Counted.taken += 1
        return super().take(char)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body",
    [
        "[" * 3000,
        '{"a":' * 3000,
        '{"name": "f", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001,
        '{"name": "f", "arguments": {"x": "' + "long " * 6000,
        '{"name": "f", "arguments": {"x": [' + "1," * 15000,
        "{" * 30000,
        '{"' * 15000,
        "[[{" * 10000,
        '{"a": 1} ' * 3000,
        "<tool_call>{" * 3000,
        "[TOOL_CALLS][" * 3000,
        '{"name": "f", "arguments": {}}\n' * 1000,
    ],
)
def test_no_character_is_looked_at_more_than_twice(kind: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep nesting and long calls that do not end cost what their length is, in pieces of two characters."""
    text = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3_json": "<|python_tag|>"}[kind] + body
    read, loads = 0, json.loads

    def counting(value: str, **options: Any) -> Any:
        nonlocal read
        read += len(value)
        return loads(value, **options)

    monkeypatch.setattr(json_calls_module, "JsonScanner", Counted)
    monkeypatch.setattr(tool_calls_module.json, "loads", counting)
    Counted.taken, parser, events = 0, made(kind), []
    for i in range(0, len(text), 2):
        events += parser.feed(text[i : i + 2], finished=False)
    # Twice where it ends one attempt and begins the next.
    assert Counted.taken <= 2 * len(text)
    assert read <= len(text)
    answer = collect([*events, *parser.feed("", finished=True)])
    if not answer.calls:
        assert answer.content == text


def test_nesting_has_a_limit_that_python_can_read() -> None:
    def nested(depth: int) -> str:
        return '{"name": "f", "arguments": {"x": ' + "[" * depth + "]" * depth + "}}"

    content, calls = run(made("llama3_json"), [nested(MAX_DEPTH - 2)])
    assert (content, len(calls)) == ("", 1)
    assert json.dumps(calls[0][1]).count("[") == MAX_DEPTH - 2
    assert run(made("llama3_json"), [nested(MAX_DEPTH - 1)]) == (nested(MAX_DEPTH - 1), [])
    assert run(made("llama3_json"), [nested(100_000)]) == (nested(100_000), [])


@pytest.mark.parametrize(
    ("kind", "special", "text", "content"),
    [
        ("hermes", ["<tool_call>", "</tool_call>"], f"Hm. <tool_call>{TEXT}</tool_call>", "Hm. "),
        ("hermes", ["<tool_call>"], f"Hm. <tool_call>{TEXT}</tool_call> So.", "Hm.  So."),
        ("mistral", ["[TOOL_CALLS]"], f"Hm. [TOOL_CALLS][{TEXT}]", "Hm. "),
        ("mistral", ["[TOOL_CALLS]", "[ARGS]"], f"Hm. [TOOL_CALLS]f[ARGS]{ARGUMENTS}", "Hm. "),
        ("llama3_json", ["<|python_tag|>"], f"Hm. <|python_tag|>{LLAMA}", "Hm. "),
        ("hermes", [], f"Hm. <tool_call>{TEXT}</tool_call>", "Hm. "),
    ],
)
def test_markers_that_are_special_tokens_are_seen(kind: str, special: list[str], text: str, content: str) -> None:
    tokenizer = byte_tokenizer(*special, "<|pad|>")
    body = {"tools": TOOLS, "n": 2, "temperature": 1.0}

    def answer(text: str, **more: Any) -> Said:
        ids = tokenizer.encode(text)
        whole, streamed = chat(tokenizer, [ids, ids], {**body, **more}, tool_parser=kind)
        assert whole == streamed
        assert whole[0] == whole[1]
        return whole[0]

    got = answer(text + "<|pad|>")
    assert (got.content, got.calls, got.finish_reason) == (content, [("f", CALL["arguments"])], "tool_calls")
    bad = text.replace("{", "{!")
    without = bad
    for marker in special:  # what is no text does not become text because a call is bad
        without = without.replace(marker, "")
    got = answer(bad)
    assert (got.content, got.calls, got.finish_reason) == (without, [], "stop")
    assert answer(bad, skip_special_tokens=False).content == bad
    assert answer(text, tool_choice="none").calls == []


def test_a_special_marker_inside_a_string_is_the_string() -> None:
    tokenizer = byte_tokenizer("<tool_call>", "</tool_call>")
    text = '<tool_call>{"name": "f", "arguments": {"html": "a</tool_call>b<tool_call>"}}</tool_call>'
    whole, streamed = chat(tokenizer, [tokenizer.encode(text)], {"tools": TOOLS}, tool_parser="hermes")
    assert whole == streamed == [Said("", [("f", {"html": "a</tool_call>b<tool_call>"})], "tool_calls")]


@pytest.mark.parametrize("special", [["<tool_call>", "</tool_call>"], []])
@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize(
    ("stop", "content", "calls"),
    [
        ("</tool_call>", "Hm. ", [("f", CALL["arguments"])]),
        ("<tool_call>", "Hm. ", []),
        ("Hm. <tool_call>", "", []),
        ("}</tool_call>\n", "Hm. ", [("f", CALL["arguments"])]),
    ],
)
def test_markers_may_be_stop_strings(special: list[str], included: bool, stop: str, content: str, calls: Calls) -> None:
    tokenizer = byte_tokenizer(*special)
    ids = tokenizer.encode(f"Hm. <tool_call>{TEXT}</tool_call>\nSo <tool_call>{TEXT}</tool_call>")
    body = {"tools": TOOLS, "stop": ["never", stop], "include_stop_str_in_output": included}
    whole, streamed = chat(tokenizer, [ids], body, tool_parser="hermes")
    assert whole == streamed
    assert whole[0].finish_reason == ("tool_calls" if whole[0].calls else "stop")
    assert len(whole[0].calls) <= 1
    if included or stop.startswith("}"):
        assert "So" not in whole[0].content
    else:
        assert (whole[0].content, whole[0].calls) == (content, calls)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("names", ["f", "g", "fg"])
def test_forced_tools_have_definitions_of_their_own(tiny_server: Running, names: str, stream: bool) -> None:
    """What a tool's schema refers to is looked up in that schema, also where all tools are parts of one."""
    values = {"f": ["x", "y"], "g": ["p", "q"]}
    tools = []
    for name in names:
        of = {"$defs": {"E": {"enum": values[name]}}, "type": "object", "required": ["a", "b"]}
        of["properties"] = {
            "a": {"$ref": "#/$defs/E"},
            "b": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "$ref": {"const": {"$ref": "#/$defs/E"}},
        }
        tools.append({"type": "function", "function": {"name": name, "parameters": of}})
    body = {"messages": MESSAGES, "tools": tools, "parallel_tool_calls": False, "stream": stream, "max_tokens": 300}
    first = {"type": "function", "function": {"name": names[0]}}
    for choice in ("required", first):
        answer = tiny_server.post("/v1/chat/completions", {**body, "tool_choice": choice, "seed": 3})
        assert answer.status_code == 200, answer.text
        said = Said()
        for line in answer.text.splitlines():
            if stream and line.startswith("data: {"):
                for one in json.loads(line[6:])["choices"]:
                    said.take(one["delta"], one)
        if not stream:
            one = answer.json()["choices"][0]
            said.take(one["message"], one)
        if said.finish_reason == "tool_calls":
            [(name, arguments)] = said.calls
            assert name in names
            while arguments is not None:
                assert arguments["a"] in values[name]
                assert arguments.get("$ref", {"$ref": "#/$defs/E"}) == {"$ref": "#/$defs/E"}
                arguments = arguments["b"]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_over_http(tiny_server: Running, stream: bool) -> None:
    """The model is made to write a call and text; what its client gets is both."""
    text = f"Let me see. <tool_call>{TEXT}</tool_call> Done."
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 200, "stream": stream, "logprobs": True}
    answer = tiny_server.post("/v1/chat/completions", {**body, "structured_outputs": {"choice": [text]}})
    assert answer.status_code == 200, answer.text
    said = Said()
    for line in answer.text.splitlines():
        if stream and line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                said.take(choice["delta"], choice)
    if not stream:
        choice = answer.json()["choices"][0]
        said.take(choice["message"], choice)
    assert said == Said("Let me see.  Done.", [("f", CALL["arguments"])], "tool_calls")
    assert said.logprobs is not None
    assert "".join(entry["token"] for entry in said.logprobs) == text


def test_calls_of_a_chat() -> None:
    """Whole and streamed: n answers, several calls, one of them where only one is allowed, answers that were cut."""
    tokenizer = byte_tokenizer()
    two = tokenizer.encode(f"So <tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>")
    none = tokenizer.encode("No {call}.")

    def answers(finish: str = "stop", **more: Any) -> list[Said]:
        body = {"tools": TOOLS, "n": 2, "temperature": 1.0, **more}
        whole, streamed = chat(tokenizer, [two, none], body, tool_parser="hermes", finish=finish)
        assert whole == streamed
        return whole

    read = ("f", CALL["arguments"])
    assert answers() == [Said("So ", [read, read], "tool_calls"), Said("No {call}.", [], "stop")]
    assert answers(parallel_tool_calls=False)[0] == Said("So ", [read], "tool_calls")
    assert answers("length")[0] == Said("So ", [read, read], "length")
    assert answers(tool_choice="none")[0].content.startswith("So <tool_call>")


@pytest.mark.parametrize(
    ("choice", "text", "finish", "want"),
    [
        (
            "required",
            json.dumps([{"name": "f", "parameters": {"x": 1}}]),
            "stop",
            Said("", [("f", {"x": 1})], "tool_calls"),
        ),
        ("required", '[{"name": "f", "parameters": {"x": 1}}, {"na', "length", Said("", [("f", {"x": 1})], "length")),
        ("required", '[{"name": "f", "par', "length", Said('[{"name": "f", "par', [], "length")),
        ("required", "5", "stop", Said("5", [], "stop")),
        (
            {"type": "function", "function": {"name": "f"}},
            '{"x": 1}',
            "stop",
            Said("", [("f", {"x": 1})], "stop"),
        ),
        (
            {"type": "function", "function": {"name": "f"}},
            '{"x": "é',
            "length",
            Said("", [("f", '{"x": "é')], "length"),
        ),
    ],
)
def test_forced_calls_of_a_chat(choice: Any, text: str, finish: str, want: Said) -> None:
    tokenizer = byte_tokenizer()
    body = {"tools": TOOLS, "tool_choice": choice}
    whole, streamed = chat(tokenizer, [tokenizer.encode(text)], body, tool_parser="hermes", finish=finish)
    assert whole == streamed == [want]


def test_the_template_tells_the_format(caplog: pytest.LogCaptureFixture) -> None:
    assert format_of(["... <tool_call> ..."]) == "hermes"
    assert format_of(["[TOOL_CALLS]"]) == "mistral"
    assert format_of(["<|python_tag|>"]) == "llama3_json"
    assert format_of(["<tool_call>", "<arg_key>"]) == "glm45"
    assert format_of(["<tool_call><function=x>"]) == "qwen3_xml"
    assert format_of(["plain"]) is None
    guess = model_formats("auto", "auto", ("plain and unknown",))
    assert (guess.tools, guess.is_guess) == (FORMATS["hermes"], True)
    answer_reader._tell_guess.cache_clear()
    with caplog.at_level("INFO", "octavo"):
        AnswerReaders(guess, asking("none"))
        assert not caplog.text
        AnswerReaders(guess, asking("auto"))
    assert "--tool-call-parser" in caplog.text
    assert model_formats("auto", "none", ("<tool_call>",)).tools is None
    assert model_formats("auto", "glm47", ("<tool_call>",)).tools == FORMATS["glm45"]
    assert model_formats("auto", "auto", ("<|start|>a<|channel|>b<|message|>c",)).is_harmony


MESSAGES = [{"role": "user", "content": "x"}]


def asking(choice: Any, **more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, **more})


def test_some_of_the_tools_are_allowed() -> None:
    def allowed(mode: str, *names: str) -> ChatRequest:
        some = [{"type": "function", "function": {"name": name}} for name in names]
        return asking({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": some}})

    all_names = [tool["function"]["name"] for tool in TOOLS]
    for mode in ("auto", "required"):
        request = allowed(mode, all_names[-1], all_names[-1])
        assert request.tool_choice == mode
        assert [tool.function.name for tool in request.tools or ()] == all_names[-1:]
    for mode, name in (("auto", "no such"), ("none", all_names[0])):
        with pytest.raises(ValidationError, match=r"is none of the tools|'auto' or 'required'"):
            allowed(mode, name)


def read(request: ChatRequest, text: str) -> Calls:
    """The calls of a forced answer, the same in any pieces."""
    whole = run(ForcedParser(request), [text])
    assert run(ForcedParser(request), [*text, ""]) == whole
    return whole[1]


def test_forced_calls_that_are_cut_short_keep_the_whole_ones() -> None:
    request = asking("required")
    assert forced(request) is not None
    whole = json.dumps([{"name": "f", "parameters": {"x": 1}}])
    assert read(request, whole) == [("f", {"x": 1})]
    assert read(request, whole[:-1] + ', {"name": "f", "par') == [("f", {"x": 1})]
    for text in ("", "[", "null", "5", '"f"', "[5]", "[[]]", "[{}]", '[{"name": "f"}]', "[" * 5000, '[{"a":' * 5000):
        assert read(request, text) == []
    assert read(request, f"[ {whole[1:-1]} ,\n{whole[1:-1]} ]") == [("f", {"x": 1})] * 2
    named = asking({"type": "function", "function": {"name": "f"}})
    cut = collect(ForcedParser(named).feed('{"x": ', True))
    assert [(one.name, one.arguments) for one in cut.calls] == [("f", '{"x": ')]


def test_forced_calls_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_calls_module, "JsonScanner", Counted)
    Counted.taken = 0
    text = json.dumps([{"name": "f", "parameters": {"x": 1}}] * 3000)
    assert len(read(asking("required"), text)) == 3000
    assert Counted.taken <= 2 * len(text)
