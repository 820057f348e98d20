"""Tool calls and thoughts as OpenAI's client reads them, whole and streamed, over the whole application."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest

from octavo.server.app import create_app
from octavo.server.harmony import CHANNEL, CONSTRAIN, END, MARKERS, MESSAGE, START
from octavo.server.reasoning_formats import FORMATS as REASONING_FORMATS
from octavo.server.tool_formats import FORMATS
from tests.server.scripted import ScriptedClient, byte_tokenizer, service
from tests.server.tool_writers import SCHEMA, written

TOOLS: Any = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")]
ARGUMENTS = {"x": "Rome\n\"é\" < 'a'", "n": 3, "l": [1, {"a": None}]}
CALLS = [("f", ARGUMENTS), ("g", {})]
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def ask(markers: Sequence[str], text: str, body: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """The answer that the client gets, whole, and put together by it from a stream's parts."""
    tokenizer = byte_tokenizer("</s>", *markers)
    ids = [*tokenizer.encode(text), 0]

    async def run() -> tuple[Any, Any]:
        answers = []
        for stream in (False, True):
            made = service(tokenizer, ScriptedClient([ids], "stop", ()), served_model_name="scripted", **options)
            transport = httpx.ASGITransport(create_app(made))
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://octavo") as http,
                openai.AsyncOpenAI(api_key="x", base_url="http://octavo/v1", http_client=http) as client,
            ):
                asked = {"model": "scripted", "messages": MESSAGES, **body}
                if stream:
                    async with client.chat.completions.stream(**asked) as events:
                        told = [e async for e in events if e.type == "tool_calls.function.arguments.delta"]
                        answers.append((await events.get_final_completion()).choices[0])
                    assert len(told) > 3
                else:
                    answers.append((await client.chat.completions.create(**asked)).choices[0])
        return answers[0], answers[1]

    return asyncio.run(run())


def calls_of(choice: Any) -> list[tuple[str, Any]]:
    return [(one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls or []]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_calls_of_every_format(kind: str) -> None:
    markers = [m for m in FORMATS[kind].markers if len(m) > 8]
    for choice in ask(markers, written(kind, CALLS), {"tools": TOOLS}, tool_parser=kind):
        assert calls_of(choice) == CALLS
        assert choice.finish_reason == "tool_calls"
        assert not choice.message.content
        assert (
            len({one.id for one in choice.message.tool_calls}) == (1 if kind == "kimi_k2" else 2) or kind == "kimi_k2"
        )


@pytest.mark.parametrize(
    ("kind", "reasoning"), [("qwen3_xml", "qwen3"), ("glm45", "glm45"), ("gemma4", "gemma4"), ("mistral", "mistral")]
)
def test_a_thought_then_text_then_a_call(kind: str, reasoning: str) -> None:
    format = REASONING_FORMATS[reasoning]
    label = f"{format.label}\n" if format.label else ""
    text = f"{format.openings[0]}{label}so it is{format.closings[0]}\n\nI look.\n{written(kind, CALLS[:1])}"
    markers = [m for m in (*FORMATS[kind].markers, *format.markers) if len(m) > 6]
    for choice in ask(markers, text, {"tools": TOOLS}, tool_parser=kind, reasoning_parser=reasoning):
        assert choice.message.reasoning.strip() == "so it is"
        assert choice.message.content.strip() == "I look."
        assert calls_of(choice) == CALLS[:1]


def test_harmony() -> None:
    text = (
        f"{CHANNEL}analysis{MESSAGE}so it is{END}{START}assistant"
        f"{CHANNEL}commentary{MESSAGE}I look.{END}{START}assistant"
        f"{CHANNEL}commentary to=functions.f {CONSTRAIN}json{MESSAGE}{json.dumps(ARGUMENTS)}"
    )
    for choice in ask(MARKERS, text, {"tools": TOOLS}, tool_parser="openai"):
        assert (choice.message.reasoning, choice.message.content) == ("so it is", "I look.")
        assert calls_of(choice) == CALLS[:1]
        assert choice.finish_reason == "tool_calls"


def test_forced_calls_of_a_stream_come_in_pieces() -> None:
    text = json.dumps([{"name": name, "parameters": arguments} for name, arguments in CALLS])
    for choice in ask((), text, {"tools": TOOLS, "tool_choice": "required"}):
        assert (calls_of(choice), choice.finish_reason) == (CALLS, "tool_calls")
    named = {"type": "function", "function": {"name": "g"}}
    for choice in ask((), json.dumps(ARGUMENTS), {"tools": TOOLS, "tool_choice": named}):
        assert (calls_of(choice), choice.finish_reason) == ([("g", ARGUMENTS)], "stop")  # as OpenAI has it
