"""LangChain: chats, streams, tools, objects and embeddings, over OpenAI's APIs and Anthropic's."""

import asyncio
import sys
from typing import Literal

import openai
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

CHAT, EMBEDDINGS = sys.argv[1:3]
HERE = {"base_url": CHAT + "/v1", "api_key": "none", "model": "chat", "temperature": 0, "max_tokens": 200}
MODELS = {
    "chat": ChatOpenAI(**HERE),
    "responses": ChatOpenAI(use_responses_api=True, **HERE),
    "messages": ChatAnthropic(**{**HERE, "base_url": CHAT}),
}
HELLO = [HumanMessage("What is the capital of France?")]


class Look(BaseModel):
    """Looks a city up."""

    city: Literal["Paris", "Rome"]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    mood: Literal["glad", "sad"]


def gathered(pieces: list) -> AIMessage:
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    return whole


async def model(name: str) -> None:
    llm = MODELS[name]
    said = llm.invoke(HELLO)
    assert said.text and said.usage_metadata["output_tokens"], name
    assert gathered([*llm.stream(HELLO)]).text == said.text, name
    assert gathered([piece async for piece in llm.astream(HELLO)]).text == said.text, name
    assert [one.text for one in await llm.abatch([HELLO] * 4)] == [said.text] * 4, name
    forced = {"type": "any"} if name == "messages" else "required"
    looking = llm.bind_tools([Look], tool_choice=forced, parallel_tool_calls=False)  # of more, max_tokens cuts the last
    called = looking.invoke(HELLO)
    (call,) = called.tool_calls
    assert call["name"] == "Look" and call["args"]["city"] in ("Paris", "Rome"), name
    streamed = gathered([piece async for piece in looking.astream(HELLO)])
    assert [one["args"] for one in streamed.tool_calls] == [one["args"] for one in called.tool_calls], name
    assert llm.bind_tools([Look]).invoke([*HELLO, called, ToolMessage("It is there", tool_call_id=call["id"])]), name
    methods = [None] if name == "messages" else ["function_calling", "json_schema"]
    for method in methods:
        shaped = llm.with_structured_output(Person, **({"method": method} if method else {}))
        assert shaped.invoke("Anna is glad.").mood in ("glad", "sad"), (name, method)
    async for _ in llm.astream("Tell a long story", max_tokens=400):
        break  # the client goes


async def main() -> None:
    for name in MODELS:
        await model(name)
    assert OpenAI(**HERE).invoke("One, two,")
    try:
        MODELS["chat"].invoke("many words " * 5000)
    except openai.BadRequestError as error:
        assert "maximum context length is 2048 tokens" in str(error), error.body
    else:
        raise AssertionError("a prompt that is too long")
    vectors = OpenAIEmbeddings(
        base_url=EMBEDDINGS + "/v1", api_key="none", model="embed", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_documents(["a", "b"])) == 2 and vectors.embed_query("a")


asyncio.run(main())
