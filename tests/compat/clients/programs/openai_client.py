"""OpenAI's client: chats, texts, responses, tools, objects, embeddings, files and batches, and what goes wrong."""

import asyncio
import io
import json
import sys
import time
from typing import Literal

import openai
from pydantic import BaseModel, Field

CHAT, EMBEDDINGS = sys.argv[1:3]
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
ASK = {"model": "chat", "messages": HELLO, "max_tokens": 60, "temperature": 0}
LONG = {**ASK, "max_tokens": 200}  # a call's JSON, of which a tiny model writes each letter as a token
RESPOND = {"model": "chat", "input": "What is the capital of France?", "max_output_tokens": 60, "temperature": 0}
client = openai.OpenAI(base_url=CHAT + "/v1", api_key="none", max_retries=2)


class Person(BaseModel):
    name: str = Field(max_length=10)
    mood: Literal["glad", "sad"]


def chats() -> None:
    said = client.chat.completions.create(**ASK).choices[0].message
    assert said.content and said.reasoning is None and said.tool_calls is None
    with client.chat.completions.stream(**ASK) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == said.content
    parsed = client.chat.completions.parse(**LONG, response_format=Person).choices[0].message.parsed
    assert parsed.mood in ("glad", "sad")
    tools = [openai.pydantic_function_tool(Person)]
    one = {"tool_choice": "required", "parallel_tool_calls": False}  # of more, max_tokens could cut the last
    with client.chat.completions.stream(**LONG, tools=tools, **one) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments.mood in ("glad", "sad")
    again = [
        *HELLO,
        {"role": "assistant", "content": None, "reasoning": None, "tool_calls": [call.model_dump(exclude={"parsed"})]},
        {"role": "tool", "tool_call_id": call.id, "name": "Person", "content": "yes"},
    ]
    assert client.chat.completions.create(**{**ASK, "messages": again}, tools=tools).usage.prompt_tokens


def responses() -> None:
    said = client.responses.create(**RESPOND)
    assert said.output_text and said.usage.output_tokens
    with client.responses.stream(**RESPOND) as stream:
        assert [*stream][-1].response.output_text == said.output_text  # completed, or incomplete: cut at 60 tokens
    assert client.responses.parse(**RESPOND, text_format=Person).output_parsed.mood in ("glad", "sad")
    further = client.responses.create(**{**RESPOND, "input": "And of Spain?"}, previous_response_id=said.id)
    assert further.usage.input_tokens > said.usage.input_tokens
    assert client.responses.retrieve(said.id).output_text == said.output_text
    client.responses.delete(said.id)


def batches() -> None:
    asked = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [{"custom_id": str(i), **asked, "body": {**ASK, "max_tokens": 3}} for i in range(3)]
    lines.append({"custom_id": "broken", **asked, "body": {**ASK, "temperature": -3}})
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("batch.jsonl", io.BytesIO(data)), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "a test"}
    )
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 3, batch
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(one["custom_id"] for one in answers) == ["0", "1", "2"]
    (broken,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(broken)["custom_id"] == "broken"


def errors() -> None:
    long = [{"role": "user", "content": "many words " * 5000}]
    for error, change in [
        (openai.BadRequestError, {"temperature": -3}),
        (openai.BadRequestError, {"messages": long}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": ""}}]}),
        (openai.NotFoundError, {"model": "none"}),
    ]:
        for stream in (False, True):
            try:
                client.chat.completions.create(**{**ASK, **change}, stream=stream)
            except error as told:
                assert told.body["message"], told
            else:
                raise AssertionError(change)


async def asynchronous() -> None:
    asking = openai.AsyncOpenAI(base_url=CHAT + "/v1", api_key="none", max_retries=0)
    async with asking.chat.completions.stream(**{**ASK, "max_tokens": 500}) as stream:
        async for _ in stream:
            break  # the client goes
    late = asyncio.create_task(asking.chat.completions.create(**{**ASK, "max_tokens": 500}))
    await asyncio.sleep(0.3)
    late.cancel()
    several = await asyncio.gather(*[asking.chat.completions.create(**ASK) for _ in range(6)], return_exceptions=True)
    assert len({one.choices[0].message.content for one in several}) == 1
    embedding = openai.AsyncOpenAI(base_url=EMBEDDINGS + "/v1", api_key="none")
    got = await embedding.embeddings.create(model="embed", input=["a", "b"])
    assert len(got.data) == 2 and len(got.data[0].embedding) == len(got.data[1].embedding)


texts = {"model": "chat", "prompt": "One, two,", "max_tokens": 8, "temperature": 0}
whole = client.completions.create(**texts, logprobs=2, echo=True).choices[0]
assert whole.text.startswith("One, two,") and len(whole.logprobs.tokens) > 8
pieces = client.completions.create(**texts, stream=True)
assert "One, two," + "".join(piece.choices[0].text for piece in pieces) == whole.text
assert client.models.retrieve("chat").id == "chat"
chats()
responses()
batches()
errors()
asyncio.run(asynchronous())
