"""Small routes of vLLM's: conversations in one request, what would run, loads, /invocations, Cohere's embeddings."""

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from octavo.errors import InvalidRequestError
from octavo.server.app import create_app
from octavo.server.cohere_embed import as_kind
from octavo.server.invocations import endpoint_of
from tests.server.running import Running, server
from tests.server.scripted import ScriptedClient, byte_tokenizer, service

MESSAGES = [{"role": "user", "content": "Hi"}]


def ask(*asked: tuple[str, str, Any], **options: Any) -> list[httpx.Response]:
    """The answers of a server whose model says Hello."""

    async def run() -> list[httpx.Response]:
        tokenizer = byte_tokenizer("</s>")
        made = service(tokenizer, ScriptedClient([[*tokenizer.encode("Hello"), 0]], "stop", ()), **options)
        transport = httpx.ASGITransport(create_app(made))
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as http:
            return [await http.request(method, path, json=body) for method, path, body in asked]

    return asyncio.run(run())


def test_several_conversations() -> None:
    path, other = "/v1/chat/completions/batch", [{"role": "user", "content": "Hello?"}]
    body = {"messages": [MESSAGES, other, MESSAGES], "max_tokens": 50}
    (answer, *refused) = ask(
        ("POST", path, body),
        ("POST", path, {**body, "stream": True}),
        ("POST", path, {**body, "n": 2}),
        ("POST", path, {"messages": []}),
        ("POST", path, {"messages": MESSAGES}),
        ("POST", path, {"messages": [MESSAGES, [{"role": "user"}]]}),
    )
    value = answer.json()
    assert [choice["index"] for choice in value["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in value["choices"]} == {"Hello"}
    assert value["usage"]["prompt_tokens"] == len("HiHello?Hi")
    assert value["usage"]["completion_tokens"] == 3 * 6
    assert [one.status_code for one in refused] == [400] * 5
    assert "messages[1]" in refused[-1].json()["error"]["message"]


def test_what_would_run() -> None:
    values = {"max_tokens": 7, "temperature": 0.5}
    chat, completion, bad = ask(
        ("POST", "/v1/chat/completions/render", {"messages": MESSAGES, **values}),
        ("POST", "/v1/completions/render", {"prompt": ["Hi", "Ho"], **values}),
        ("POST", "/v1/chat/completions/render", {"messages": []}),
    )
    ids = byte_tokenizer("</s>").encode("Hi")
    assert chat.json()["token_ids"] == ids
    assert {**values, **chat.json()["sampling_params"]} == chat.json()["sampling_params"]
    assert [one["token_ids"] for one in completion.json()] == [ids, byte_tokenizer("</s>").encode("Ho")]
    assert bad.status_code == 400


def test_invocations() -> None:
    chat, completion, stream, none, broken = ask(
        ("POST", "/invocations", {"messages": MESSAGES}),
        ("POST", "/invocations", {"prompt": "Hi"}),
        ("POST", "/invocations", {"prompt": "Hi", "stream": True}),
        ("POST", "/invocations", {"x": 1}),
        ("POST", "/invocations", {"messages": 5}),
    )
    assert chat.json()["choices"][0]["message"]["content"] == "Hello"
    assert completion.json()["choices"][0]["text"] == "Hello"
    assert stream.text.startswith("data: ")
    assert (none.status_code, broken.status_code) == (400, 400)
    assert "messages" in none.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "task", "path"),
    [
        ({"input": "x"}, "embedding", "/v1/embeddings"),
        ({"messages": []}, "embedding", "/v1/embeddings"),
        ({"input": "x"}, "classify", "/classify"),
        ({"input": "x"}, "reward", "/pooling"),
        ({"text_1": "x", "text_2": "y"}, "embedding", "/score"),
        ({"query": "x", "documents": []}, "classify", "/rerank"),
    ],
)
def test_where_invocations_go(body: Any, task: str, path: str) -> None:
    assert endpoint_of(body, task) == path


def test_no_endpoint() -> None:
    for body in ([], 5, None, {"input": "x"}):
        with pytest.raises(InvalidRequestError, match="no endpoint"):
            endpoint_of(body, "generate")


def test_load() -> None:
    (answer,) = ask(("GET", "/load", None))
    assert answer.json() == {"server_load": 0}


def test_the_tokenizer_is_told_where_an_option_says_so() -> None:
    (refused,) = ask(("GET", "/tokenizer_info", None))
    assert refused.status_code == 404
    (answer,) = ask(("GET", "/tokenizer_info", None), enable_tokenizer_info_endpoint=True)
    assert answer.json()["tokenizer_class"] == "FastTokenizer"
    assert "messages" in answer.json()["chat_template"]


def test_kinds_of_embeddings() -> None:
    vectors = np.array([[0.5, -0.5, 1, -1, 0, 0.1, -0.1, 2]], dtype=np.float32)
    assert as_kind(vectors, "float") == vectors.tolist()
    assert as_kind(vectors, "int8") == [[64, -64, 127, -127, 0, 13, -13, 127]]
    assert as_kind(vectors, "uint8") == [[192, 64, 255, 1, 128, 141, 115, 255]]
    assert as_kind(vectors, "ubinary") == [[0b10101101]]
    assert as_kind(vectors, "binary") == [[0b10101101 - 128]]
    assert np.frombuffer(base64.b64decode(as_kind(vectors, "base64")[0]), "<f4").tolist() == vectors[0].tolist()


def test_cohere(embedding_server: Running) -> None:
    texts = ["Hello", "a longer text"]
    answer = embedding_server.post("/v2/embed", {"texts": texts, "embedding_types": ["float", "ubinary"]}).json()
    plain = embedding_server.post("/v1/embeddings", {"input": texts}).json()
    assert answer["embeddings"]["float"] == [one["embedding"] for one in plain["data"]]
    assert answer["texts"] == texts
    assert answer["meta"]["billed_units"]["input_tokens"] == plain["usage"]["prompt_tokens"]
    assert len(answer["embeddings"]["ubinary"][0]) == len(plain["data"][0]["embedding"]) // 8
    short = embedding_server.post("/v2/embed", {"texts": texts, "output_dimension": 8}).json()
    assert len(short["embeddings"]["float"][0]) == 8
    inputs = [{"content": [{"type": "text", "text": text}]} for text in texts]
    assert embedding_server.post("/v2/embed", {"inputs": inputs}).json()["embeddings"] == {
        "float": answer["embeddings"]["float"]
    }
    long = {"texts": ["x" * 5000]}
    assert embedding_server.post("/v2/embed", long).status_code == 200
    assert embedding_server.post("/v2/embed", {**long, "truncate": "NONE"}).status_code == 400
    for broken in ({}, {"texts": []}, {"texts": texts, "inputs": inputs}, {"inputs": [{"content": 5}]}):
        assert embedding_server.post("/v2/embed", broken).status_code == 400


def test_for_who_develops(tiny_model: Path) -> None:
    options = ("--kv-cache-memory", "64MiB", "--enable-prefix-caching", "--served-model-name", "tiny")
    with server(str(tiny_model), *options, VLLM_SERVER_DEV_MODE="1", VLLM_API_KEY_OF_OTHERS="hidden") as running:
        info = running.get("/server_info?config_format=json")
        assert info.json()["vllm_config"]["model"] == str(tiny_model)
        assert info.json()["vllm_env"]["VLLM_SERVER_DEV_MODE"] == "1"
        assert "hidden" not in info.text
        assert str(tiny_model) in running.get("/server_info").json()["vllm_config"]

        def cached() -> int:
            body = {"prompt": "long " * 50, "max_tokens": 1}
            return int(running.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached(), cached()] == [0, 240]
        assert running.post("/reset_prefix_cache", None).status_code == 200
        assert [cached(), cached()] == [0, 240]

        with ThreadPoolExecutor() as pool:
            endless = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}
            cut = pool.submit(running.post, "/v1/completions", endless)
            running.until(lambda: running.get("/load").json() == {"server_load": 1})
            assert running.post("/sleep", None).status_code == 200
            assert cut.result().json()["choices"][0]["finish_reason"] == "abort"
            assert running.get("/is_sleeping").json() == {"is_sleeping": True}
            waiting = pool.submit(running.post, "/v1/completions", {"prompt": "x", "max_tokens": 1})
            running.until(lambda: running.get("/load").json() == {"server_load": 1})
            assert running.metric("num_requests_running") == 0
            assert running.post("/wake_up", None).status_code == 200
            assert waiting.result().status_code == 200
            assert running.get("/is_sleeping").json() == {"is_sleeping": False}

            with httpx.stream("POST", running.url + "/v1/completions", json={**endless, "stream": True}) as stream:
                lines = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {"))
                aborted = running.post("/abort_requests", {"request_ids": [next(lines)["id"]]})
                assert aborted.status_code == 200
                assert [line["choices"][0]["finish_reason"] for line in lines][-1] == "abort"
        assert running.post("/abort_requests", {}).status_code == 400
        assert running.post("/sleep?mode=keep", None).status_code == 400


def test_such_routes_are_not_there_otherwise() -> None:
    for answer in ask(("GET", "/server_info", None), ("POST", "/sleep", None), ("POST", "/abort_requests", {})):
        assert answer.status_code == 404
