"""/v1/responses as OpenAI's client reads it, over the whole application."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from octavo.engine.messages import Tokens
from octavo.server.app import create_app
from octavo.server.response_events import OutputItems
from octavo.server.response_items import messages_of
from octavo.server.response_store import Kept, ResponseStore
from tests.server.scripted import ScriptedClient, byte_tokenizer, service
from tests.server.tool_writers import written

TOOL: Any = {
    "type": "function",
    "name": "f",
    "description": "finds",
    "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    "strict": False,
}
THOUGHT = "<think>\nhm, so</think>\n\n"
CALL = written("hermes", [("f", {"x": "é"})])
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@asynccontextmanager
async def served(
    text: str, finish: str = "stop", **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, ScriptedClient]]:
    """OpenAI's client of a server whose model says `text`."""
    tokenizer = byte_tokenizer("</s>")
    ids = [*tokenizer.encode(text), *([0] if finish == "stop" else [])]
    scripted = ScriptedClient([ids], finish, tokenizer.encode("ab"))
    options = {"tool_parser": "hermes", "reasoning_parser": "qwen3", "served_model_name": "scripted", **options}
    made = service(tokenizer, scripted, **options)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(create_app(made)), base_url="http://octavo") as http,
        openai.AsyncOpenAI(api_key="x", base_url="http://octavo/v1", http_client=http, max_retries=0) as client,
    ):
        yield client, scripted


def with_client(
    text: str, work: Callable[[openai.AsyncOpenAI], Awaitable[Any]], finish: str = "stop", **options: Any
) -> Any:
    async def run() -> Any:
        async with served(text, finish, **options) as (client, _):
            return await work(client)

    return asyncio.run(run())


def both(text: str, finish: str = "stop", **body: Any) -> tuple[Response, Response, list[Any]]:
    """The response whole, that of a stream, and the stream's events."""

    async def work(client: openai.AsyncOpenAI) -> tuple[Response, Response, list[Any]]:
        asked = {"model": "scripted", "input": "Hi", **body}
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        return whole, events[-1].response, events

    whole, streamed, events = with_client(text, work, finish)
    for event in events:  # OpenAI's client builds values without looking at them; its types know what must be there
        EVENT.validate_python(event.model_dump(by_alias=True), by_alias=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert without_ids(whole) == without_ids(streamed)
    return whole, streamed, events


def without_ids(response: Response) -> Any:
    value = response.model_dump(exclude={"id", "created_at", "completed_at"})
    for item in value["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return value


def test_text() -> None:
    whole, _, events = both("Hello é", instructions="Be kind.", metadata={"a": "b"}, temperature=0.5)
    assert whole.output_text == "Hello é"
    assert (whole.status, whole.object, whole.incomplete_details) == ("completed", "response", None)
    assert (whole.instructions, whole.metadata, whole.temperature) == ("Be kind.", {"a": "b"}, 0.5)
    assert whole.usage is not None
    assert whole.usage.input_tokens == len("Be kind.Hi")
    assert whole.usage.output_tokens == len("Hello é".encode()) + 1
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    kinds = [event.type for event in events]
    assert kinds[2:4] == ["response.output_item.added", "response.content_part.added"]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events[4:-4]) == "Hello é"


def test_thoughts_text_and_calls() -> None:
    whole, _, events = both(f"{THOUGHT}I look.\n{CALL}", tools=[TOOL])
    reasoning, message, call = whole.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert reasoning.content[0].text.strip() == "hm, so"
    assert message.type == "message"
    assert whole.output_text.strip() == "I look."
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments), call.status) == ("f", {"x": "é"}, "completed")
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    told = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(told) > 1
    assert "".join(told) == call.arguments
    added = [event.item.type for event in events if event.type == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call"]
    assert whole.tools[0].type == "function"


def test_the_client_puts_a_stream_together() -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(model="scripted", input="Hi", tools=[TOOL]) as events:
            async for _ in events:
                pass
            return await events.get_final_response()

    final = with_client(f"{THOUGHT}I look.\n{CALL}", work)
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_an_answer_that_is_cut() -> None:
    whole, _, events = both("Hello", finish="length", max_output_tokens=5)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert events[-1].type == "response.incomplete"
    assert whole.max_output_tokens == 5


def test_no_text_is_an_empty_message() -> None:
    whole, _, _ = both("")
    assert whole.output[0].type == "message"
    assert whole.output_text == ""


def test_a_forced_call_and_allowed_tools() -> None:
    whole, _, _ = both(json.dumps({"x": "a"}), tools=[TOOL], tool_choice={"type": "function", "name": "f"})
    assert [item.type for item in whole.output] == ["function_call"]
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    answer = json.dumps([{"name": "f", "parameters": {"x": "a"}}])
    whole, _, _ = both(answer, tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert [item.type for item in whole.output] == ["function_call"]


def test_logprobs_are_of_the_text() -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole, _, events = both(f"{THOUGHT}Hello", **asked)
    message = whole.output[1]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(one.token for one in part.logprobs) == part.text == "Hello"
    assert all(len(one.top_logprobs) >= 2 for one in part.logprobs)
    told = [one.token for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert told == [one.token for one in part.logprobs]


def test_a_schema_reaches_the_engine() -> None:
    async def run() -> Any:
        async with served('{"a": 1}') as (client, scripted):
            seen = []
            begin = scripted.add
            scripted.add = lambda *a, **k: (seen.append(a[2]), begin(*a, **k))[1]  # type: ignore[assignment,func-returns-value]
            schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}
            text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
            response = await client.responses.create(model="scripted", input="Hi", text=text)
            await client.responses.create(model="scripted", input="Hi", text={"format": {"type": "json_object"}})
            return response, seen, schema

    response, seen, schema = asyncio.run(run())
    assert seen[0].structured_outputs.json == schema
    assert seen[1].structured_outputs.json_object
    assert response.text.format.schema_ == schema


def test_a_conversation_goes_on() -> None:
    async def work(client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model="scripted", input="Hi", instructions="Not again.")
        second = await client.responses.create(model="scripted", input="And?", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert second.usage is not None
        assert second.usage.input_tokens == len("HiHelloAnd?")
        assert (await client.responses.retrieve(second.id)).output_text == "Hello"
        items = await client.responses.input_items.list(second.id, order="asc")
        assert [item.role for item in items.data] == ["user", "assistant", "user"]  # type: ignore[union-attr]
        page = await client.responses.input_items.list(second.id, order="asc", limit=1, after=items.data[0].id)
        assert [item.id for item in page.data] == [items.data[1].id]
        assert page.has_more
        count = await client.responses.input_tokens.count(input="And?", previous_response_id=first.id)
        assert count.input_tokens == second.usage.input_tokens
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(first.id)
        await client.responses.delete(first.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(first.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await client.responses.create(model="scripted", input="x", previous_response_id=first.id)
        kept = await client.responses.create(model="scripted", input="x", previous_response_id=second.id)
        assert kept.usage is not None
        assert kept.usage.input_tokens == len("HiHelloAnd?Hellox")
        unkept = await client.responses.create(model="scripted", input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unkept.id)

    with_client("Hello", work)


def test_what_was_answered_can_be_sent_back() -> None:
    async def work(client: openai.AsyncOpenAI) -> None:
        first = await client.responses.create(model="scripted", input="Hi", tools=[TOOL])
        call = first.output[-1]
        assert call.type == "function_call"
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
        sent: Any = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output), output]
        second = await client.responses.create(model="scripted", input=sent, tools=[TOOL])
        assert second.status == "completed"
        third = await client.responses.create(model="scripted", input=[output], previous_response_id=first.id)
        assert third.status == "completed"

    with_client(f"{THOUGHT}I look.\n{CALL}", work)


def test_in_the_background() -> None:
    async def run() -> None:
        async with served("Hello") as (client, scripted):
            queued = await client.responses.create(model="scripted", input="Hi", background=True)
            assert queued.status == "queued"
            while (response := await client.responses.retrieve(queued.id)).status in ("queued", "in_progress"):
                await asyncio.sleep(0)
            assert (response.status, response.output_text) == ("completed", "Hello")
            stream = await client.responses.create(model="scripted", input="Hi", background=True, stream=True)
            events = [event async for event in stream]
            assert events[-1].type == "response.completed"
            again = await client.responses.retrieve(events[-1].response.id, stream=True, starting_after=3)
            assert [event async for event in again] == events[4:]

            scripted.add = lambda *a, **k: scripted.saying.__setitem__(  # type: ignore[method-assign,assignment]
                a[0], asyncio.get_running_loop().create_future()
            )
            hanging = await client.responses.create(model="scripted", input="Hi", background=True)
            await asyncio.sleep(0.01)
            assert (await client.responses.cancel(hanging.id)).status == "cancelled"
            assert (await client.responses.retrieve(hanging.id)).status == "cancelled"
            with pytest.raises(openai.BadRequestError, match="cancelled"):
                await client.responses.create(model="scripted", input="x", previous_response_id=hanging.id)

    asyncio.run(run())


def of_file(**values: Any) -> dict[str, Any]:
    part = {"type": "input_file", **values}
    return {"input": [{"role": "user", "content": [part, {"type": "input_text", "text": "What is it?"}]}]}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "web_search_call"}]}, r"input\[0\].type"),
    ({"input": [{"role": "robot", "content": "x"}]}, r"input\[0\].role"),
    ({"input": [{"role": "user"}]}, r"input\[0\].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, r"input\[0\].content\[0\]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "URL"),
    (of_file(file_id="file-1"), "file_data, in base64; file_id and file_url are not supported"),
    (of_file(file_url="https://a.org/b.txt"), "file_id and file_url are not supported"),
    (of_file(file_data="a&b"), "it is not base64"),
    (of_file(file_data="data:text/plain,abc"), "a data URL must be in base64"),
    (of_file(file_data="JVBERi0xLjUKJeLjz9M=", filename="a.pdf"), "no UTF-8 text, and other files are not read"),
    (of_file(file_data="YQ==", filename=5), r"input\[0\].content\[0\].filename"),
    ({"input": [{"type": "function_call", "name": "f"}]}, r"input\[0\].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "a", "output": 5}]}, r"input\[0\].output"),
    ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type"),
    ({"tools": [{"type": "function"}]}, r"tools\[0\].name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "z"}}, "z"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "z"}]}},
        "tool_choice.tools",
    ),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"extra_body": {"n": 2}}, "n"),
    ({"background": True, "store": False}, "background"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
]


@pytest.mark.parametrize(("body", "said"), BROKEN)
def test_broken_requests_are_refused(body: dict[str, Any], said: str) -> None:
    async def work(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            await client.responses.create(**{"model": "scripted", "input": "Hi", **body})
        assert caught.value.type == "invalid_request_error"

    with_client("Hello", work)


def test_an_engine_that_fails_behind_the_first_event() -> None:
    async def run() -> list[Any]:
        async with served("Hello") as (client, scripted):
            say = scripted.messages

            async def broken(*args: Any) -> AsyncIterator[Any]:
                async for message in say(*args):
                    yield message
                    await asyncio.sleep(0.01)
                    yield Tokens(message.request_id, 0, [], None, "error", "the row has overflowed")
                    return

            scripted.messages = broken  # type: ignore[method-assign,assignment]
            return [event async for event in await client.responses.create(model="scripted", input="x", stream=True)]

    events = asyncio.run(run())
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert "overflowed" in events[-1].response.error.message


def test_text_files_are_read_as_text() -> None:
    for data in ("YWAKw6kK", "data:text/plain;base64,YWAKw6kK"):
        (message,) = messages_of(None, of_file(file_data=data, filename="notes.md")["input"])
        texts = [part["text"] for part in message["content"]]
        assert texts == ["notes.md:\n```\na`\né\n```", "What is it?"]
    (message,) = messages_of(None, of_file(file_data="YGBgYA==")["input"])
    assert message["content"][0]["text"] == "file.txt:\n`````\n````\n`````"

    async def work(client: openai.AsyncOpenAI) -> None:
        answer = await client.responses.create(model="scripted", **of_file(file_data="YWJj", filename="a.txt"))
        assert answer.output_text == "Hello"
        assert answer.usage is not None
        plain = await client.responses.create(model="scripted", input="What is it?")
        assert plain.usage is not None
        assert answer.usage.input_tokens > plain.usage.input_tokens

    with_client("Hello", work)


def test_messages_of_items() -> None:
    items = [
        {"type": "message", "role": "developer", "content": "b"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "d"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "e"}]},
        {"type": "function_call", "name": "f", "call_id": "1", "arguments": "{}"},
        {"type": "function_call", "name": "g", "call_id": "2", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "h"},
        {"type": "function_call_output", "call_id": "2", "output": "i"},
        {"type": "message", "role": "assistant", "content": "j"},
        {"type": "message", "role": "assistant", "content": "k"},
    ]

    def call(name: str, id: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}

    calls = [call("f", "1"), call("g", "2")]
    assert messages_of("a", items) == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "e", "reasoning_content": "d", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "h"},
        {"role": "tool", "tool_call_id": "2", "content": "i"},
        {"role": "assistant", "content": "j"},
        {"role": "assistant", "content": "k"},
    ]


def test_a_call_that_is_none() -> None:
    from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, Event, Text

    events: list[Event] = [Text("a"), CallBegin("f"), CallArguments('{"x'), CallBroken('<f {"x y', " y"), Text("z")]
    told = OutputItems(lambda name, index: "1", is_told=True)
    told.take(events)
    told.end(is_cut=False)
    assert [(i["type"], i["status"]) for i in told.items] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
        ("message", "completed"),
    ]
    untold = OutputItems(lambda name, index: "1", is_told=False)
    untold.take(events)
    untold.end(is_cut=False)
    assert [item["content"][0]["text"] for item in untold.items] == ['a<f {"x yz']


def kept(id: str, before: Kept | None = None, size: int = 0) -> Kept:
    return Kept({"id": id, "output": [], "pad": "x" * size}, [], before)


def test_the_store_is_bounded() -> None:
    one = len(json.dumps({"id": "a", "output": [], "pad": ""}, separators=(",", ":"))) + 20
    store = ResponseStore(3 * one)
    for id in "abcd":
        store.put(kept(id))
        assert store.num_bytes <= store.max_bytes
    assert [id for id in "abcd" if store.get(id)] == ["b", "c", "d"]
    store.get("b")
    store.put(kept("e"))
    assert [id for id in "bcde" if store.get(id)] == ["b", "d", "e"]
    store.put(kept("f", size=4 * one))  # larger than all that there may be
    assert store.num_bytes == 0
    assert not any(store.get(id) for id in "abcdef")


def test_what_others_go_on_from_counts_as_long_as_they() -> None:
    store = ResponseStore(10_000)
    first = kept("a", size=100)
    store.put(first)
    second = kept("b", first)
    store.put(second)
    everything = store.num_bytes
    assert store.drop("a")
    assert store.num_bytes == everything
    assert store.drop("b")
    assert store.num_bytes == 0
    store.put(second)  # one that came to its end when it was kept no longer
    assert store.num_bytes == everything
    assert not store.drop("a")
    assert store.drop("b")
    assert store.num_bytes == 0
