"""gpt-oss' messages in channels: thoughts, answers and calls, from any pieces, whole and streamed."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.server.answer_events import Answer, CallArguments, collect
from octavo.server.harmony import CALL, CHANNEL, CONSTRAIN, END, MARKERS, MESSAGE, RETURN, START, HarmonyParser
from tests.server.scripted import Said, byte_tokenizer, chat

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
THINK = f"{CHANNEL}analysis{MESSAGE}a < b, so{END}{START}assistant"
FINAL = f"{CHANNEL}final{MESSAGE}Yes."
CALLED = f'{CHANNEL}commentary to=functions.f {CONSTRAIN}json{MESSAGE}{{"x": "é"}}{CALL}'


def read(pieces: list[str], prompt: str = f"{START}assistant", **options: Any) -> Answer:
    parser = HarmonyParser(prompt, **options)
    return collect([e for i, piece in enumerate(pieces) for e in parser.feed(piece, i == len(pieces) - 1)])


@pytest.mark.parametrize(
    ("text", "thought", "content", "calls"),
    [
        (THINK + FINAL + RETURN, "a < b, so", "Yes.", []),
        (THINK + FINAL, "a < b, so", "Yes.", []),
        (FINAL, "", "Yes.", []),
        (THINK + CALLED, "a < b, so", "", [("f", '{"x": "é"}')]),
        (
            f'{THINK[:-9]}assistant to=functions.f{CHANNEL}commentary json{MESSAGE}{{"x": 1}}{CALL}',
            "a < b, so",
            "",
            [("f", '{"x": 1}')],
        ),
        (
            f"{THINK}{CHANNEL}commentary{MESSAGE}I look.{END}{START}assistant{CALLED}",
            "a < b, so",
            "I look.",
            [("f", '{"x": "é"}')],
        ),
        (f"{CALLED}{START}assistant{CALLED}", "", "", [("f", '{"x": "é"}')] * 2),
        (f"{CHANNEL}analysis to=python code{MESSAGE}1 + 1{CALL}", "1 + 1", "", []),
        (f"{CHANNEL}commentary to=f{MESSAGE}{{}}{CALL}", "", "", [("f", "{}")]),
        (CALLED[:-12], "", "", [("f", '{"x": ')]),
        (f"{CHANNEL}analysis{MESSAGE}cut", "cut", "", []),
        ("no message at all", "", "no message at all", []),
        (f"{CHANNEL}final", "", "", []),
        (f"{MESSAGE}bare", "", "bare", []),
        ("", "", "", []),
    ],
)
def test_messages(text: str, thought: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], [*text, ""], [text[i : i + 3] for i in range(0, len(text) or 1, 3)]):
        answer = read(pieces, tools=("f",))
        assert (answer.thought, answer.content) == (thought, content)
        assert [(one.name, one.arguments) for one in answer.calls] == calls


def test_the_prompt_says_where_the_answer_begins() -> None:
    assert read(["Yes."], f"{START}user{MESSAGE}Hi{END}{START}assistant{CHANNEL}final{MESSAGE}Well. ").content == "Yes."
    assert read(["so"], f"{START}assistant{CHANNEL}analysis{MESSAGE}").thought == "so"
    assert read([FINAL], f"{START}user{MESSAGE}Hi{END}").content == "Yes."
    assert read([FINAL], "a prompt of another kind").content == "Yes."


def test_calls_where_there_are_no_tools_are_text() -> None:
    answer = read([CALLED], tools=())
    assert (answer.content, answer.calls) == ('{"x": "é"}', [])
    assert len(read([CALLED + START + "assistant" + CALLED], max_calls=1).calls) == 1


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*MARKERS, "analysis", "final", "commentary", " to=functions.f", "json", "assistant", "a", " "]
        ),
        max_size=20,
    ),
    st.lists(st.integers(0, 200), max_size=10),
)
def test_any_pieces_give_the_same(parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    cuts = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    whole = read([text])
    assert read([text[a:b] for a, b in itertools.pairwise(cuts)]) == whole
    assert read([*text, ""]) == whole


@settings(max_examples=200, deadline=None)
@given(st.text("abc <|>\n{}", max_size=40), st.text("abc <|>\n{}", max_size=40))
def test_nothing_of_messages_is_lost(thought: str, said: str) -> None:
    text = f"{CHANNEL}analysis{MESSAGE}{thought}{END}{START}assistant{CHANNEL}final{MESSAGE}{said}"
    answer = read([*text, ""])
    assert (answer.thought, answer.content) == (thought, said)


@pytest.mark.parametrize("options", [{}, {"tool_parser": "openai"}, {"reasoning_parser": "openai_gptoss"}])
def test_a_chat_whole_and_streamed(options: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer("</s>", *MARKERS)
    if not options:  # the template tells
        tokenizer.chat_templates["default"] = (
            "{# <|start|> <|channel|> <|message|> #}" + tokenizer.chat_templates["default"]
        )
        options = {"tool_parser": "auto"}

    def answer(text: str, **more: Any) -> Said:
        whole, streamed = chat(tokenizer, [tokenizer.encode(text)], {"tools": TOOLS, **more}, **options)
        assert whole == streamed
        return whole[0]

    assert answer(THINK + FINAL) == Said("Yes.", [], "stop", reasoning="a < b, so")
    assert answer(THINK + FINAL, include_reasoning=False) == Said("Yes.", [], "stop")
    assert answer(THINK + CALLED[: -len(CALL)]) == Said("", [("f", {"x": "é"})], "tool_calls", reasoning="a < b, so")
    said = answer(THINK + FINAL, logprobs=True)
    assert said.logprobs is not None
    tokens = "".join(entry["token"] for entry in said.logprobs)
    assert tokens == "analysisa < b, soassistantfinalYes."
    assert json.dumps(tokens, ensure_ascii=False).encode()


def test_arguments_come_as_they_are_written() -> None:
    parser = HarmonyParser(f"{START}assistant")
    text = f"{CHANNEL}commentary to=functions.f{MESSAGE}" + '{"x": "' + "word " * 50
    told = [e for piece in text for e in parser.feed(piece, finished=False) if isinstance(e, CallArguments)]
    assert len(told) > 200
