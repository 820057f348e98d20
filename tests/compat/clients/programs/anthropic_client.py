"""Anthropic's client: messages, streams with tools, counted tokens, broken requests and streams that are left."""

import asyncio
import sys

import anthropic

CLIENT = {"base_url": sys.argv[1], "api_key": "none", "max_retries": 2}
ASK = {
    "model": "chat",
    "max_tokens": 30,
    "extra_body": {"temperature": 0},
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
TOOL = {
    "name": "look",
    "description": "Looks a city up",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
FORCED = {**ASK, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "look"}, "max_tokens": 200}


async def asynchronous() -> None:
    client = anthropic.AsyncAnthropic(**CLIENT)
    async with client.messages.stream(**FORCED) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_message()
    assert kinds[0] == "message_start" and "input_json" in kinds and kinds[-1] == "message_stop", kinds
    (use,) = [block for block in whole.content if block.type == "tool_use"]
    assert isinstance(use.input["city"], str) and whole.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "It is there."}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": [block.model_dump() for block in whole.content]},
        {"role": "user", "content": [result]},
    ]
    assert (await client.messages.create(**{**ASK, "messages": messages, "tools": [TOOL]})).content
    async with client.messages.stream(**{**ASK, "max_tokens": 500}) as stream:
        async for _ in stream:
            break  # the client goes
    several = await asyncio.gather(*[client.messages.create(**ASK) for _ in range(6)])
    assert len({one.content[0].text for one in several}) == 1


client = anthropic.Anthropic(**CLIENT)
said = client.messages.create(**ASK)
assert said.content[0].type == "text" and said.usage.output_tokens
with client.messages.stream(**ASK) as stream:
    assert "".join(stream.text_stream) == said.content[0].text
asked = {"model": "chat", "messages": ASK["messages"]}
told = said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)
assert client.messages.count_tokens(**asked).input_tokens == told
for error, change in [
    (anthropic.BadRequestError, {"extra_body": {"temperature": -3}}),
    (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "many words " * 5000}]}),
    (anthropic.BadRequestError, {"messages": []}),
    (anthropic.NotFoundError, {"model": "none"}),
]:
    try:
        client.messages.create(**{**ASK, **change})
    except error as told:
        assert told.body["error"]["message"], told
    else:
        raise AssertionError(change)
(listed,) = [one for one in client.models.list(limit=20) if one.id == "chat"]
assert client.models.retrieve("chat") == listed
assert (listed.id, listed.type, listed.display_name) == ("chat", "model", "chat")
assert listed.created_at.tzinfo is not None
asyncio.run(asynchronous())
