"""What a model thinks is told apart from its answer, however the text is cut."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.reasoning import MARKERS, THINK, ReasoningParser, reasoning_markers
from tests.server.scripted import Said, byte_tokenizer, chat

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def run(pieces: list[str], prompt: str = "") -> tuple[str, str]:
    parser = ReasoningParser(THINK, prompt)
    parts = [parser.feed(piece, i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    return "".join(a for a, _ in parts), "".join(b for _, b in parts)


@pytest.mark.parametrize(
    ("prompt", "text", "thought", "answer"),
    [
        ("", "<think>\na < b</thin\n</think>\n\nYes.", "a < b</thin", "Yes."),
        ("<|assistant|><think>\n", "so\n\nit is</think>Yes.", "so\n\nit is", "Yes."),
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", "Yes <think>no</think>", "", "Yes <think>no</think>"),
        ("", "<thin", "", "<thin"),
        ("", "<think>cut </thi", "cut </thi", ""),
        ("", " \n<think></think> Yes", "", "Yes"),
    ],
)
def test_a_thought(prompt: str, text: str, thought: str, answer: str) -> None:
    assert run([text], prompt) == (thought, answer)
    assert run(list(text), prompt) == (thought, answer)


@given(st.text("<>think/ \na", max_size=60), st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_any_cut_gives_the_same(text: str, cuts: list[int], begun: bool) -> None:
    text = text.replace("tn", "</think>").replace("kh", "<think>")
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    prompt = "<think>" if begun else ""
    assert run([text[a:b] for a, b in itertools.pairwise(places)], prompt) == run([text], prompt)


def test_markers_are_found_from_the_template() -> None:
    assert reasoning_markers("auto", ["{{ '<think></think>' }}"]) == THINK
    assert reasoning_markers("auto", ["plain"]) is None
    assert reasoning_markers("none", ["</think>"]) is None
    assert reasoning_markers("granite", []) == MARKERS["granite"]


@pytest.mark.parametrize(
    ("text", "body", "said"),
    [
        ("<think>\nso it is\n</think>\n\nYes.", {}, Said("Yes.", [], "stop", reasoning="so it is")),
        ("Yes.", {}, Said("Yes.", [], "stop")),
        ("<think>never done", {}, Said("", [], "stop", reasoning="never done")),
        (
            f"<think>ask</think>{CALL}",
            {"tools": [WEATHER]},
            Said("", [("weather", {"city": "Rome"})], "tool_calls", reasoning="ask"),
        ),
    ],
)
def test_a_chat_whole_and_streamed(text: str, body: dict[str, Any], said: Said) -> None:
    tokenizer = byte_tokenizer("</s>")
    whole, streamed = chat(
        tokenizer, [tokenizer.encode(text)] * 2, {"n": 2, **body}, tool_parser="hermes", reasoning_parser="qwen3"
    )
    assert whole == streamed == [said] * 2


def test_a_forced_answer_is_no_thought() -> None:
    tokenizer, text = byte_tokenizer("</s>"), '{"a": "<think>"}'
    body = {"response_format": {"type": "json_object"}}
    whole, streamed = chat(tokenizer, [tokenizer.encode(text)], body, reasoning_parser="qwen3")
    assert whole == streamed == [Said(text, [], "stop")]
