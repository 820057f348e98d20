"""What a model thinks is told apart from its answer, however the text is cut."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.answer_events import Text, Thought
from octavo.server.reasoning import ReasoningParser
from octavo.server.reasoning_formats import FORMATS, HARMONY, THINK, ReasoningFormat, format_of
from tests.server.scripted import Said, byte_tokenizer, chat

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
COHERE = "<|START_THINKING|>so<|END_THINKING|>"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def run(pieces: list[str], prompt: str = "", format: ReasoningFormat = THINK, **variables: Any) -> tuple[str, str]:
    parser = ReasoningParser(format, prompt, variables)
    events = [e for i, piece in enumerate(pieces) for e in parser.feed(piece, i == len(pieces) - 1)]
    thought, answer = ("".join(e.text for e in events if isinstance(e, kind)) for kind in (Thought, Text))
    return thought, answer


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


def test_the_template_tells_the_format() -> None:
    assert format_of(["{{ '<think></think>' }}"]) == "qwen3"
    assert format_of(["plain"]) is None
    assert format_of(["[THINK]a[/THINK]"]) == "mistral"
    assert format_of(["<|start|>assistant<|channel|>final<|message|>"]) == HARMONY


@pytest.mark.parametrize(
    ("name", "prompt", "text", "thought", "answer"),
    [
        ("deepseek_r1", "", "so</think>Yes.", "so", "Yes."),
        ("deepseek_r1", "<think></think>", "Yes.", "", "Yes."),
        ("deepseek_r1", "", "<think>so</think>Yes.", "so", "Yes."),
        ("deepseek_v3", "", "Yes.", "", "Yes."),
        ("deepseek_v31", "<think>", "so</think>Yes.", "so", "Yes."),
        ("qwen3", "<think>\n", "so\n<tool_call>\n<function=f>", "so", "<tool_call>\n<function=f>"),
        ("qwen3", "<think>\n", "say <tool_call> or</think>no", "say <tool_call> or", "no"),
        ("glm45", "", "<think>so</think>\nYes.", "so", "Yes."),
        ("granite", "", "Here is my thought process: so Here is my response: Yes.", "so", "Yes."),
        ("granite", "", "Here's my thought process: so Here's my response: Yes.", "so", "Yes."),
        ("granite", "", "Here is no thought.", "", "Here is no thought."),
        ("hunyuan_a13b", "", "<think>\nso\n</think>\n<answer>\nYes.\n</answer>", "so", "Yes."),
        ("hunyuan_a13b", "", "<answer>\nYes.\n</answer>", "", "Yes."),
        ("ernie45", "<think>", "so\n</think>\n\n\n<response>\nYes.\n</response>\n", "so", "Yes."),
        ("ernie45", "<think>", "so\n</think>\n\n\n<tool_call>", "so", "<tool_call>"),
        ("mistral", "", "[THINK]so[/THINK]Yes.", "so", "Yes."),
        ("kimi_k2", "", "<think>so<|tool_calls_section_begin|>x", "so", "<|tool_calls_section_begin|>x"),
        ("minimax_m2", "<think>\n", "so</think>\n\nYes.", "so", "Yes."),
        ("minimax_m2_append_think", "<think>\n", "so</think>\n\nYes.", "", "<think>so</think>\n\nYes."),
        ("seed_oss", "", "<seed:think>so</seed:think>Yes.", "so", "Yes."),
        ("gemma4", "", "<|channel>thought\nso<channel|>Yes.", "so", "Yes."),
        ("gemma4", "", "<|channel>thought\n<channel|>Yes.", "", "Yes."),
        ("olmo3", "<think>", "so</think>Yes.", "so", "Yes."),
        ("step3", "", "so</think>Yes.", "so", "Yes."),
        (
            "cohere_command3",
            "",
            "<|START_THINKING|>so<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
            "so",
            "Yes.",
        ),
        ("apertus", "", "<|inner_prefix|>so<|inner_suffix|>Yes.", "so", "Yes."),
    ],
)
def test_thoughts_of_families(name: str, prompt: str, text: str, thought: str, answer: str) -> None:
    assert run([text], prompt, FORMATS[name]) == (thought, answer)
    assert run([*text, ""], prompt, FORMATS[name]) == (thought, answer)


def test_a_template_that_was_told_not_to_think() -> None:
    assert run(["Yes."], "", FORMATS["deepseek_r1"], enable_thinking=False) == ("", "Yes.")
    assert run(["Yes."], "", FORMATS["deepseek_r1"], thinking=False) == ("", "Yes.")
    assert run(["so"], "", FORMATS["deepseek_r1"]) == ("so", "")


pieces = st.sampled_from(
    [m for f in FORMATS.values() for m in (*f.markers, *f.interrupted_by, f.label) if m]
    + [" ", "\n", "a", "<", "thought"]
)


@given(st.data(), st.sampled_from(sorted(FORMATS)), st.lists(pieces, max_size=12), st.booleans())
def test_any_cut_of_any_format_gives_the_same(data: st.DataObject, name: str, parts: list[str], begun: bool) -> None:
    text, format = "".join(parts), FORMATS[name]
    places = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8))), len(text)]
    prompt = format.openings[0] if begun else ""
    cut = [text[a:b] for a, b in itertools.pairwise(places)]
    whole = run([text], prompt, format)
    assert run(cut, prompt, format) == whole
    assert run([*text, ""], prompt, format) == whole


@given(st.sampled_from(sorted(FORMATS)), st.text("ab \n<>[]|:", max_size=40), st.booleans())
def test_text_without_markers_is_kept(name: str, text: str, begun: bool) -> None:
    thought, answer = run([text], FORMATS[name].openings[0] if begun else "", FORMATS[name])
    said = (thought + answer).replace("<think>", "") if FORMATS[name].in_content else thought + answer
    assert "".join(said.split()) == "".join(text.split())


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
