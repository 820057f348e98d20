"""pydantic-ai: agents over /v1/chat/completions, /v1/responses and /v1/messages, with tools, objects and streams."""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL = sys.argv[1]
OPENAI = OpenAIProvider(base_url=URL + "/v1", api_key="none")
MODELS = {
    "chat": OpenAIChatModel("chat", provider=OPENAI),
    "responses": OpenAIResponsesModel("chat", provider=OPENAI),
    "messages": AnthropicModel("chat", provider=AnthropicProvider(base_url=URL, api_key="none")),
}
SETTINGS = {"temperature": 0.0, "max_tokens": 200}


class Person(BaseModel):
    name: str = Field(max_length=10)
    mood: Literal["glad", "sad"]


async def agent(name: str) -> None:
    model = MODELS[name]
    plain = Agent(model, model_settings=SETTINGS, instructions="Be brief.")
    said = await plain.run("What is the capital of France?")
    assert said.output and said.usage.output_tokens, name
    async with plain.run_stream("What is the capital of France?") as stream:
        pieces = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == said.output, name
    again = await plain.run("And of Spain?", message_history=said.all_messages())
    assert again.output, name
    outputs = [ToolOutput(Person)] if name == "messages" else [ToolOutput(Person), NativeOutput(Person)]
    for output in outputs:
        made = Agent(model, output_type=output, model_settings=SETTINGS)
        assert (await made.run("Anna is glad.")).output.mood in ("glad", "sad"), (name, output)
        async with made.run_stream("Anna is glad.") as stream:
            assert (await stream.get_output()).mood in ("glad", "sad"), (name, output)
    looking = Agent(model, model_settings=SETTINGS)

    @looking.tool_plain
    def look(city: str) -> str:
        """Look a city up."""
        return f"{city} is there"

    await looking.run("Say hello")
    try:
        await plain.run("many words " * 5000)
    except ModelHTTPError as error:
        assert error.status_code == 400, error
    else:
        raise AssertionError(name)


async def main() -> None:
    for name in MODELS:
        await agent(name)


asyncio.run(main())
