"""Tool calls in a model's text: found whole however it is cut, and text that only looks like one stays text."""

import json
import random
from typing import Any

import pytest

from octavo.server.protocol import ChatRequest
from octavo.server.tools import HermesParser, LlamaParser, MistralParser, ToolParser, choose_parser, forced, read_forced

CALL = {"name": "f", "arguments": {"x": "a < b", "n": [1, 2]}}
TEXT = json.dumps(CALL)
LLAMA = json.dumps({"name": "f", "parameters": CALL["arguments"]})


def run(parser: ToolParser, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    content, calls = "", []
    for i, piece in enumerate(pieces):
        more, found = parser.feed(piece, finished=i == len(pieces) - 1)
        content += more
        calls += found
    return content, calls


def cuts(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    places = sorted(rng.sample(range(1, len(text)), min(len(text) - 1, 6)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("kind", "text", "content", "count"),
    [
        (HermesParser, f"Let me see.\n<tool_call>\n{TEXT}\n</tool_call>", "Let me see.\n", 1),
        (HermesParser, f"<tool_call>{TEXT}</tool_call>\n<tool_call>{TEXT}</tool_call>", "", 2),
        (HermesParser, f"<tool_call>{TEXT}", "", 1),
        (HermesParser, "a < b and <tool_call>no call</tool_call>", "a < b and <tool_call>no call</tool_call>", 0),
        (HermesParser, "half a <tool", "half a <tool", 0),
        (MistralParser, f"[TOOL_CALLS][{TEXT}, {TEXT}]", "", 2),
        (MistralParser, "an [array] of things", "an [array] of things", 0),
        (LlamaParser, LLAMA, "", 1),
        (LlamaParser, f"<|python_tag|>{LLAMA}; {LLAMA}", "", 2),
        (LlamaParser, 'JSON is {"a": 1} here', 'JSON is {"a": 1} here', 0),
    ],
)
def test_calls_are_found_however_the_text_is_cut(kind: type[ToolParser], text: str, content: str, count: int) -> None:
    for pieces in ([text], list(text), *(cuts(text, seed) for seed in range(20))):
        got, calls = run(kind(), pieces)
        assert got == content
        assert calls == [("f", CALL["arguments"])] * count


def test_the_template_tells_the_parser() -> None:
    assert choose_parser("auto", ["... <tool_call> ..."]) is HermesParser
    assert choose_parser("auto", ["[TOOL_CALLS]"]) is MistralParser
    assert choose_parser("auto", ["<|python_tag|>"]) is LlamaParser
    assert choose_parser("auto", ["plain"]) is None
    assert choose_parser("hermes", []) is HermesParser
    assert choose_parser("none", ["<tool_call>"]) is None


def test_forced_calls_that_are_cut_short_keep_the_whole_ones() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [{"role": "user", "content": "x"}]
    request = ChatRequest.model_validate({"messages": messages, "tools": tools, "tool_choice": "required"})
    assert forced(request) is not None
    whole = json.dumps([{"name": "f", "parameters": {"x": 1}}])
    assert read_forced(request, whole) == [("f", {"x": 1})]
    assert read_forced(request, whole[:-1] + ', {"name": "f", "par') == [("f", {"x": 1})]
    assert read_forced(request, "[") == []
