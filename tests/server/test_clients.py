"""Real clients: OpenAI's, LangChain's, curl."""

import asyncio
import json
import subprocess
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from pydantic import BaseModel, Field

from octavo import LLM, SamplingParams
from tests.server.running import Running

MESSAGES: Any = [{"role": "user", "content": "What is the capital of Germany?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(smollm_server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=smollm_server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_completion_is_the_engines_own(client: openai.OpenAI, model: str, smollm_file: Any) -> None:
    llm = LLM(str(smollm_file), kv_cache_memory="256MiB", max_model_len=2048)
    prompt = "The capital of France is"
    want = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=12, logprobs=2), use_tqdm=False)[0].outputs[0]
    got = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=12, logprobs=2)
    choice = got.choices[0]
    assert choice.text == want.text
    assert choice.finish_reason == want.finish_reason
    logprobs = [step[t].logprob for step, t in zip(want.logprobs, want.token_ids, strict=True)]
    assert choice.logprobs.token_logprobs == pytest.approx(logprobs)
    assert got.usage.completion_tokens == 12
    streamed = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == want.text


def test_completion_of_several_prompts_and_echo(client: openai.OpenAI, model: str) -> None:
    got = client.completions.create(
        model=model, prompt=["One, two,", "Red, green,"], temperature=0, max_tokens=4, n=1, echo=True, logprobs=1
    )
    assert [c.index for c in got.choices] == [0, 1]
    assert got.choices[0].text.startswith("One, two,")
    tokens = got.choices[0].logprobs
    assert tokens.token_logprobs[0] is None
    assert "".join(tokens.tokens) == got.choices[0].text
    only = client.completions.create(model=model, prompt="One, two,", max_tokens=0, echo=True, logprobs=0)
    assert only.choices[0].text == "One, two,"
    assert only.usage.completion_tokens == 0


def test_chat(client: openai.OpenAI, model: str) -> None:
    got = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=16, logprobs=True, top_logprobs=3
    )
    message = got.choices[0].message
    assert "Berlin" in message.content
    assert len(got.choices[0].logprobs.content[0].top_logprobs) == 3
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == message.content
    assert chunks[-1].usage.total_tokens == got.usage.total_tokens


def test_seed_n_and_stop(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "temperature": 1.0, "max_tokens": 12, "n": 3}
    first = client.chat.completions.create(**asked, seed=5)
    again = client.chat.completions.create(**asked, seed=5)
    assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
    assert len({c.message.content for c in first.choices}) > 1
    stopped = client.completions.create(
        model=model, prompt="1, 2, 3, 4,", temperature=0, max_tokens=40, stop=[" 7"], extra_body={"min_tokens": 2}
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text.endswith("6,")


def test_asynchronous_client(smollm_server: Running) -> None:
    async def run() -> list[str]:
        client = openai.AsyncOpenAI(base_url=smollm_server.url + "/v1", api_key="none")
        async with client:
            model = (await client.models.list()).data[0].id
            calls = [
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": f"Say {i}"}], max_tokens=4
                )
                for i in range(8)
            ]
            return [r.choices[0].message.content for r in await asyncio.gather(*calls)]

    assert len(asyncio.run(run())) == 8


def test_structured_output(client: openai.OpenAI, model: str) -> None:
    class City(BaseModel):  # bounded: whatever the model likes to say, the answer ends
        name: str = Field(max_length=20)
        inhabitants: int = Field(ge=0, le=100_000_000)

    parsed = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=City, temperature=0, max_tokens=150
    )
    assert isinstance(parsed.choices[0].message.parsed, City)
    free = client.chat.completions.create(
        model=model, messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=60, temperature=0
    )
    assert free.choices[0].message.content.lstrip().startswith("{")
    choice = client.completions.create(
        model=model, prompt="Yes or no?", max_tokens=5, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert choice.choices[0].text in ("yes", "no")
    with pytest.raises(openai.BadRequestError, match="objct"):
        client.completions.create(
            model=model, prompt="x", extra_body={"structured_outputs": {"json": {"type": "objct"}}}
        )


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_tools(client: openai.OpenAI, model: str, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "messages": MESSAGES,
        "tools": [WEATHER],
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": 200,
        "parallel_tool_calls": False,
    }
    got = client.chat.completions.create(**asked)
    calls = got.choices[0].message.tool_calls
    assert calls[0].function.name == "get_weather"
    assert set(json.loads(calls[0].function.arguments)) == {"city", "days"}
    assert got.choices[0].finish_reason == ("tool_calls" if choice == "required" else "stop")  # as OpenAI's own
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**asked, stream=True) if c.choices]
    streamed = [call for d in deltas for call in d.tool_calls or []]
    assert (streamed[0].function.name, streamed[0].index) == ("get_weather", 0)
    assert len(streamed) > 2  # as they are written
    assert "".join(call.function.arguments for call in streamed) == calls[0].function.arguments


def test_embeddings(embedding_server: Running) -> None:
    client = openai.OpenAI(base_url=embedding_server.url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    texts = ["red", "blue", "a longer text"]
    packed = client.embeddings.create(model=model, input=texts)  # the client asks for base64
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    for one, two in zip(packed.data, plain.data, strict=True):
        np.testing.assert_allclose(one.embedding, two.embedding, atol=1e-6)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert len(client.embeddings.create(model=model, input="red", dimensions=8).data[0].embedding) == 8
    scores = embedding_server.post("/score", {"text_1": "red", "text_2": ["red", "blue"]}).json()["data"]
    assert scores[0]["score"] == pytest.approx(1, abs=1e-5)
    ranked = embedding_server.post("/v1/rerank", {"query": "red", "documents": ["blue", "red"], "top_n": 1}).json()
    assert ranked["results"][0]["index"] == 1
    assert embedding_server.post("/pooling", {"input": [1, 2, 3]}).json()["data"][0]["object"] == "pooling"
    refused = embedding_server.post("/v1/completions", {"prompt": "x"})
    assert refused.status_code == 400
    assert "embedding" in refused.json()["error"]["message"]


def test_langchain(smollm_server: Running) -> None:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=smollm_server.url + "/v1", api_key="none", temperature=0, max_tokens=12, model="")
    chat.model_name = smollm_server.get("/v1/models").json()["data"][0]["id"]
    assert "Berlin" in chat.invoke("What is the capital of Germany?").content
    assert "".join(c.content for c in chat.stream("What is the capital of Germany?"))


def test_curl(smollm_server: Running) -> None:
    body = json.dumps({"prompt": "One, two,", "max_tokens": 4, "temperature": 0, "stream": True})
    url = smollm_server.url + "/v1/completions"
    done = subprocess.run(
        ["curl", "-sN", url, "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        check=True,
    )
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert " three" in "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])


def test_tokens_and_back(smollm_server: Running) -> None:
    given = smollm_server.post("/tokenize", {"prompt": "Hello world", "return_token_strs": True}).json()
    assert given["count"] == len(given["tokens"]) == len(given["token_strs"])
    assert smollm_server.post("/detokenize", {"tokens": given["tokens"]}).json()["prompt"] == "Hello world"
    chat = smollm_server.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["count"] > given["count"]


def test_small_routes(smollm_server: Running) -> None:
    for path in ("/health", "/ping", "/version", "/v1/models", "/metrics", "/", "/stats", "/openapi.json"):
        assert smollm_server.get(path).status_code == 200, path
    assert smollm_server.get("/nosuch").json()["error"]["code"] == 404
    assert smollm_server.metric("generation_tokens_total") > 0
    assert httpx.get(smollm_server.url + "/v1/completions").status_code == 405
