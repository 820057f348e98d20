"""/v1/messages as Anthropic's client reads it, over the whole application."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import TypeAdapter

from octavo.engine.messages import Tokens
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, Event, Text
from octavo.server.app import create_app
from octavo.server.message_blocks import messages_of
from octavo.server.message_events import ContentBlocks
from tests.server.scripted import ScriptedClient, byte_tokenizer, service
from tests.server.tool_writers import written

anthropic = pytest.importorskip("anthropic")
httpx = pytest.importorskip("httpx2")  # which Anthropic's client is made with

TOOL: Any = {
    "name": "f",
    "description": "finds",
    "input_schema": {"type": "object", "properties": {"x": {"type": "string"}}},
}
THOUGHT = "<think>\nhm, so</think>\n\n"
CALL = written("hermes", [("f", {"x": "é"})])
ASKED: Any = {"model": "scripted", "max_tokens": 500, "messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def served(
    text: str, finish: str = "stop", key: str = "x", **options: Any
) -> AsyncIterator[tuple[Any, ScriptedClient]]:
    """Anthropic's client of a server whose model says `text`."""
    tokenizer = byte_tokenizer("</s>")
    ids = [*tokenizer.encode(text), *([0] if finish == "stop" else [])]
    scripted = ScriptedClient([ids], finish, ())
    options = {"tool_parser": "hermes", "reasoning_parser": "qwen3", "served_model_name": "scripted", **options}
    made = service(tokenizer, scripted, **options)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(create_app(made)), base_url="http://octavo") as http,
        anthropic.AsyncAnthropic(api_key=key, base_url="http://octavo", http_client=http, max_retries=0) as client,
    ):
        yield client, scripted


def with_client(text: str, work: Callable[[Any], Awaitable[Any]], finish: str = "stop", **options: Any) -> Any:
    async def run() -> Any:
        async with served(text, finish, **options) as (client, _):
            return await work(client)

    return asyncio.run(run())


def both(text: str, finish: str = "stop", **body: Any) -> tuple[Any, list[Any]]:
    """The message, and a stream's events, of which the client makes the same."""
    event_type: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)

    async def work(client: Any) -> tuple[Any, Any, list[Any]]:
        asked = {**ASKED, **body}
        whole = await client.messages.create(**asked)
        events = [event async for event in await client.messages.create(**asked, stream=True)]
        async with client.messages.stream(**asked) as stream:
            return whole, await stream.get_final_message(), events

    whole, streamed, events = with_client(text, work, finish)
    for event in events:  # the client builds values without looking at them; its types know what must be there
        event_type.validate_python(event.model_dump(by_alias=True), by_alias=True)
    assert without_ids(whole) == without_ids(streamed)
    assert events[0].type == "message_start"
    assert [event.type for event in events[-2:]] == ["message_delta", "message_stop"]
    return whole, events


def without_ids(message: Any) -> Any:
    value = message.model_dump(exclude={"id", "parsed_output"})
    for block in value["content"]:
        for key in ("id", "signature", "parsed_output"):
            block.pop(key, None)
    return value


def test_text() -> None:
    message, events = both("Hello é", system="Be kind.")
    assert [(block.type, block.text) for block in message.content] == [("text", "Hello é")]
    assert (message.type, message.role, message.model) == ("message", "assistant", "scripted")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens == len("Be kind.Hi")
    assert message.usage.output_tokens == len("Hello é".encode()) + 1
    kinds = [event.type for event in events]
    assert kinds[1] == "content_block_start"
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3] == "content_block_stop"
    assert events[0].message.usage.input_tokens == message.usage.input_tokens


def test_thoughts_text_and_calls() -> None:
    message, events = both(f"{THOUGHT}I look.\n{CALL}", tools=[TOOL], thinking={"type": "adaptive"})
    thinking, text, call = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking.strip() == "hm, so"
    assert thinking.signature
    assert text.text.strip() == "I look."
    assert (call.type, call.name, call.input) == ("tool_use", "f", {"x": "é"})
    assert message.stop_reason == "tool_use"
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    told = [delta.partial_json for delta in deltas if delta.type == "input_json_delta"]
    assert len(told) > 1
    assert json.loads("".join(told)) == call.input
    message, _ = both(f"{THOUGHT}I look.", thinking={"type": "disabled"})
    assert [block.type for block in message.content] == ["text"]


def test_why_it_ended() -> None:
    message, _ = both("Hello", finish="length")
    assert message.stop_reason == "max_tokens"
    message, _ = both("Hello. Bye", stop_sequences=["."])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ".")
    assert message.content[0].text == "Hello"


def test_forced_calls() -> None:
    forced: Any = {"x": "a"}
    message, _ = both(json.dumps(forced), tools=[TOOL], tool_choice={"type": "tool", "name": "f"})
    assert [(block.type, block.input) for block in message.content] == [("tool_use", forced)]
    answer = json.dumps([{"name": "f", "parameters": forced}, {"name": "g", "parameters": {}}])
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    message, _ = both(answer, tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert [(block.type, block.input) for block in message.content] == [("tool_use", forced)]


def test_what_the_engine_is_asked() -> None:
    async def run() -> tuple[list[Any], list[str]]:
        async with served("{}") as (client, scripted):
            params, prompts, begin = list[Any](), list[str](), scripted.add

            def add(request_id: str, prompt: Any, given: Any, priority: int = 0) -> None:
                params.append(given)
                prompts.append(prompt.text)
                begin(request_id, prompt, given)

            scripted.add = add  # type: ignore[method-assign]
            schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
            config = {"format": {"type": "json_schema", "schema": schema}}
            sampling = {"temperature": 0.25, "top_k": 5, "top_p": 0.5, "stop_sequences": ["x"]}
            await client.messages.create(**ASKED, extra_body={**sampling, "output_config": config})
            begun = [*ASKED["messages"], {"role": "assistant", "content": "The answer is"}]
            await client.messages.create(**{**ASKED, "messages": begun})
            return params, prompts

    params, prompts = asyncio.run(run())
    first = params[0]
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.25, 5, 0.5, 500)
    assert first.stop == ["x"]
    assert first.structured_outputs.json["properties"] == {"a": {"type": "integer"}}
    assert prompts == ["Hi", "HiThe answer is"]


def test_what_was_answered_can_be_sent_back_and_counted() -> None:
    async def work(client: Any) -> None:
        first = await client.messages.create(**ASKED, tools=[TOOL])
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "42"}
        messages = [
            *ASKED["messages"],
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
        ]
        second = await client.messages.create(**{**ASKED, "messages": messages}, tools=[TOOL])
        count = await client.messages.count_tokens(model="scripted", messages=messages, tools=[TOOL])
        assert count.input_tokens == second.usage.input_tokens
        long = [{"role": "user", "content": "x" * 50_000}]  # more than the model has room for
        assert (await client.messages.count_tokens(model="scripted", messages=long)).input_tokens == 50_000
        with pytest.raises(anthropic.BadRequestError, match=r"10,?000"):
            await client.messages.create(**{**ASKED, "messages": long})

    with_client(f"{THOUGHT}I look.\n{CALL}", work)


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role"),
    ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content"),
    ({"messages": [{"role": "user", "content": [5]}]}, r"messages\[0\].content\[0\]"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, r"messages\[0\].content\[0\].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, r"content\[0\].tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}, "file"),
    ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, r"messages\[0\].content\[0\].type"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"extra_body": {"max_tokens": None}}, "max_tokens"),
    ({"system": [{"type": "text"}]}, r"system\[0\].text"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, r"tools\[0\]"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "z"}}, "z"),
    ({"thinking": {"type": "x"}}, "thinking"),
    ({"extra_body": {"temperature": -1}}, "temperature"),
]


@pytest.mark.parametrize(("body", "said"), BROKEN)
def test_broken_requests_are_refused(body: dict[str, Any], said: str) -> None:
    async def work(client: Any) -> None:
        with pytest.raises(anthropic.BadRequestError, match=said) as caught:
            await client.messages.create(**{**ASKED, **body})
        assert caught.value.body["type"] == "error"
        assert caught.value.body["error"]["type"] == "invalid_request_error"

    with_client("Hello", work)


def test_keys_and_names() -> None:
    async def refused(client: Any) -> None:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(**ASKED)
        assert caught.value.body["error"]["type"] == "authentication_error"

    async def taken(client: Any) -> None:
        assert (await client.messages.create(**ASKED)).content[0].text == "Hello"
        with pytest.raises(anthropic.NotFoundError) as caught:
            await client.messages.create(**{**ASKED, "model": "other"})
        assert caught.value.body["error"]["type"] == "not_found_error"

    with_client("Hello", refused, api_key=["secret"])
    with_client("Hello", taken, api_key=["secret"], key="secret")


def test_an_engine_that_fails_behind_the_first_event() -> None:
    async def run() -> None:
        async with served("Hello") as (client, scripted):
            say = scripted.messages

            async def broken(*args: Any) -> AsyncIterator[Any]:
                async for message in say(*args):
                    yield message
                    await asyncio.sleep(0.01)
                    yield Tokens(message.request_id, 0, [], None, "error", "the row has overflowed")
                    return

            scripted.messages = broken  # type: ignore[method-assign,assignment]
            events = await client.messages.create(**ASKED, stream=True)
            assert (await anext(events)).type == "message_start"
            with pytest.raises(anthropic.APIStatusError, match="overflowed"):
                [event async for event in events]

    asyncio.run(run())


def test_messages_of_blocks() -> None:
    def text(value: str) -> Any:
        return {"type": "text", "text": value}

    given = [
        {
            "role": "user",
            "content": [
                text("c"),
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}},
                {"type": "document", "title": "t", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
                {"type": "search_result", "source": "s", "title": "t", "content": [text("r")]},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                text("I look."),
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "é"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [text("e"), text("f")]},
                text("g"),
            ],
        },
    ]
    system = [text("x-anthropic-billing-header: cch=1"), text("a"), text("b")]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}
    assert messages_of(system, given) == [
        {"role": "system", "content": "a\nb"},
        {
            "role": "user",
            "content": [
                text("c"),
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
                text("t\n\nd"),
                text("r"),
            ],
        },
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [text("e"), text("f")]},
        {"role": "user", "content": "g"},
    ]


def test_a_call_that_is_none() -> None:
    events: list[Event] = [Text("a"), CallBegin("f"), CallArguments('{"x'), CallBroken('<f {"x y', " y"), Text("z")]
    told = ContentBlocks(lambda name, index: "1", is_told=True, shows_thoughts=True)
    told.take(events)
    told.close()
    assert [block["type"] for block in told.blocks] == ["text", "tool_use", "text"]
    untold = ContentBlocks(lambda name, index: "1", is_told=False, shows_thoughts=True)
    untold.take(events)
    untold.close()
    assert [block["text"] for block in untold.blocks] == ['a<f {"x yz']
    assert told.num_calls == untold.num_calls == 0
