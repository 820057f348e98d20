"""instructor: objects from tools and from schemas, whole and in pieces; asked again when they are not valid."""

import asyncio
import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field, field_validator

URL = sys.argv[1] + "/v1"
ASK = {
    "model": "chat",
    "messages": [{"role": "user", "content": "Anna is 30 years old."}],
    "max_tokens": 80,
    "temperature": 0,
}


class Person(BaseModel):
    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


TRIES = list[str]()


class Never(BaseModel):
    word: Literal["yes", "no"]

    @field_validator("word")
    @classmethod
    def first_no(cls, value: str) -> str:
        TRIES.append(value)
        if len(TRIES) < 2:
            raise ValueError("not this time")
        return value


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=mode)


async def asynchronous() -> None:
    made = instructor.from_openai(openai.AsyncOpenAI(base_url=URL, api_key="none"), mode=instructor.Mode.TOOLS)
    several = await asyncio.gather(*[made.chat.completions.create(response_model=Person, **ASK) for _ in range(4)])
    assert len({one.model_dump_json() for one in several}) == 1
    parts = [part async for part in made.chat.completions.create_partial(response_model=Person, **ASK)]
    assert parts[-1].mood in ("glad", "sad")


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    person = client(mode).chat.completions.create(response_model=Person, **ASK)
    assert person.mood in ("glad", "sad"), mode
    pieces = list(client(mode).chat.completions.create_partial(response_model=Person, **ASK))
    assert pieces[-1].name is not None, mode
    TRIES.clear()
    assert client(mode).chat.completions.create(response_model=Never, max_retries=2, **ASK).word
    assert len(TRIES) == 2, mode
asyncio.run(asynchronous())
