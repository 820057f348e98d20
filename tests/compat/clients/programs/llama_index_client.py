"""LlamaIndex: text, chats, streams, tools and objects, by OpenAILike."""

import asyncio
import sys
from typing import Literal

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

HERE = {"model": "chat", "api_base": sys.argv[1] + "/v1", "api_key": "none", "max_tokens": 60, "temperature": 0}
HELLO = [ChatMessage(role="user", content="What is the capital of France?")]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    mood: Literal["glad", "sad"]


def look(city: Literal["Paris", "Rome"]) -> str:
    """Looks a city up."""
    return city


async def main() -> None:
    chats = OpenAILike(is_chat_model=True, is_function_calling_model=True, context_window=2048, **HERE)
    texts = OpenAILike(is_chat_model=False, context_window=2048, **HERE)
    assert texts.complete("One, two,").text and [*texts.stream_complete("One, two,")][-1].text
    said = chats.chat(HELLO).message.content
    assert [*chats.stream_chat(HELLO)][-1].message.content == said
    assert (await chats.achat(HELLO)).message.content == said
    pieces = [piece async for piece in await chats.astream_chat(HELLO)]
    assert "".join(piece.delta or "" for piece in pieces) == said
    tool = FunctionTool.from_defaults(fn=look)
    called = chats.chat_with_tools([tool], user_msg="Look Paris up", tool_required=True)
    (call,) = chats.get_tool_calls_from_response(called)
    assert call.tool_name == "look" and call.tool_kwargs["city"] in ("Paris", "Rome")
    last = [*chats.stream_chat_with_tools([tool], user_msg="Look Paris up", tool_required=True)][-1]
    assert chats.get_tool_calls_from_response(last)[0].tool_kwargs == call.tool_kwargs
    template = PromptTemplate("{who} is glad.")
    assert chats.structured_predict(Person, template, who="Anna").mood in ("glad", "sad")
    made = await chats.as_structured_llm(Person).achat(HELLO)
    assert made.raw.mood in ("glad", "sad")
    try:
        chats.chat([ChatMessage(role="user", content="many words " * 5000)])
    except openai.BadRequestError as error:
        assert "maximum context length" in str(error)
    else:
        raise AssertionError("a prompt that is too long")


asyncio.run(main())
