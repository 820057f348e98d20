"""litellm: chats, tools in streams, schemas, embeddings, ranking, the errors that it tells apart."""

import asyncio
import json
import sys

import litellm
from pydantic import BaseModel, Field

CHAT, EMBEDDINGS = sys.argv[1:3]
HERE = {"model": "openai/chat", "api_base": CHAT + "/v1", "api_key": "none", "temperature": 0}
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks a city up",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


class City(BaseModel):
    name: str = Field(max_length=12)
    big: bool


def chats() -> None:
    whole = litellm.completion(messages=HELLO, max_tokens=12, **HERE)
    said = whole.choices[0].message.content
    pieces = litellm.completion(
        messages=HELLO, max_tokens=12, stream=True, stream_options={"include_usage": True}, **HERE
    )
    chunks = list(pieces)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said
    assert litellm.stream_chunk_builder(chunks, messages=HELLO).usage.completion_tokens == whole.usage.completion_tokens
    text = litellm.text_completion(
        model="text-completion-openai/chat", prompt="One, two,", max_tokens=4, api_base=HERE["api_base"], api_key="none"
    )
    assert text.usage.completion_tokens == 4
    answer = litellm.responses(input="Say hello", max_output_tokens=16, **HERE)
    assert answer.output[0].content[0].text


def schemas() -> None:
    got = litellm.completion(messages=HELLO, response_format=City, max_tokens=60, **HERE)
    City.model_validate_json(got.choices[0].message.content)


async def tools() -> None:
    stream = await litellm.acompletion(
        messages=HELLO, tools=[LOOK], tool_choice="required", stream=True, max_tokens=60, **HERE
    )
    chunks = [chunk async for chunk in stream]
    (call,) = litellm.stream_chunk_builder(chunks, messages=HELLO).choices[0].message.tool_calls
    assert "city" in json.loads(call.function.arguments) and call.function.name == "look"
    again = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "found"},
    ]
    assert (await litellm.acompletion(messages=again, tools=[LOOK], max_tokens=5, **HERE)).choices[0].message
    cut = await litellm.acompletion(messages=HELLO, stream=True, max_tokens=300, **HERE)
    async for _ in cut:
        break
    await cut.aclose() if hasattr(cut, "aclose") else None
    several = await asyncio.gather(*[litellm.acompletion(messages=HELLO, max_tokens=3, **HERE) for _ in range(8)])
    assert len({one.choices[0].message.content for one in several}) == 1


def errors() -> None:
    long = [{"role": "user", "content": "many words " * 5000}]
    wrong = {**HERE, "model": "openai/none"}
    for error, arguments in [
        (litellm.ContextWindowExceededError, {"messages": long, **HERE}),
        (litellm.NotFoundError, {"messages": HELLO, **wrong}),
        (litellm.BadRequestError, {"messages": HELLO, **HERE, "temperature": -3, "num_retries": 2}),
        (litellm.BadRequestError, {"messages": [], **HERE}),
    ]:
        try:
            litellm.completion(**arguments)
        except error:
            continue
        raise AssertionError(error)


def embeddings() -> None:
    got = litellm.embedding(model="openai/embed", input=["a", "b"], api_base=EMBEDDINGS + "/v1", api_key="none")
    assert len(got.data) == 2 and len(got.data[0]["embedding"]) == len(got.data[1]["embedding"])
    ranked = litellm.rerank(
        model="hosted_vllm/embed", query="a", documents=["b", "a"], api_base=EMBEDDINGS, api_key="none"
    )
    assert len(ranked.results) == 2


chats()
schemas()
asyncio.run(tools())
errors()
embeddings()
