"""Wrong values in every field of every endpoint: an error of the client's that names the field, and no harm."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.hostile import BODIES, VALUES, bodies
from tests.server.running import Running, server
from tests.test_pooling import classifier

GENERATE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}
CHATS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "x"}]], "max_tokens": 1},
    "/v1/chat/completions/render": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions/render": {"prompt": "x"},
    "/v1/responses": {"input": "x", "max_output_tokens": 16},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
}
"""What becomes requests of the two above, whose fields are tried there: of these, some values each."""
EMBED: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "x"},
    "/pooling": {"input": "x"},
    "/score": {"text_1": "x", "text_2": "y"},
    "/v1/score": {"text_1": "x", "text_2": "y"},
    "/rerank": {"query": "x", "documents": ["y"]},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/v2/rerank": {"query": "x", "documents": ["y"]},
    "/v2/embed": {"texts": ["x"], "input_type": "search_query", "embedding_types": ["float"]},
}
CLASSIFY: dict[str, dict[str, Any]] = {
    "/classify": {"input": "x"},
    "/pooling": {"input": "x"},
    "/score": {"text_1": "x", "text_2": "y"},
}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
FLAGS = ("--kv-cache-memory", "16MiB", "--max-model-len", "64", "--request-timeout", "60")
SHARE = 7
"""Of so many cases of these, one: it does not divide the number of values, so that each has its turn in some field."""
UNKNOWN = ("user", "model")
"""Fields whose errors are of another kind."""

ALIASES: dict[str, str | tuple[str, ...]] = {
    "input": ("prompt", "message "),  # a list of objects is a conversation
    **dict.fromkeys(("documents", "query", "text_1", "text_2", "texts"), "prompt"),
    "messages": "message ",
    **dict.fromkeys(("instructions", "system"), "prompt"),
    "top_logprobs": "logprobs",
    "output_dimension": "dimensions",
    "max_tokens": "truncate_prompt_tokens",  # of embeddings
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens"), "max_tokens"),
    "previous_response_id": "Response with id",
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), "structured_outputs"),
}
"""What else errors may call a field."""


@pytest.fixture(scope="module")
def generating(tiny_model: Path) -> Iterator[Running]:
    with server(str(tiny_model), *FLAGS) as running:
        yield running


def ask(client: httpx.Client, path: str, body: str) -> tuple[int, list[dict[str, Any]]]:
    """The status, and the answer or the events of a stream."""
    headers = {"Content-Type": "application/json"}
    answer = client.post(path, content=body.encode("utf-8", "surrogatepass"), headers=headers)
    if answer.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        return answer.status_code, [json.loads(line) for line in lines]
    return answer.status_code, [answer.json()]


def complaint(path: str, status: int, answers: list[dict[str, Any]], field: str) -> str | None:
    """What is wrong with an answer, if anything is."""
    errors = [a["error"] for a in answers if isinstance(a, dict) and a.get("error")]
    keys = {"type", "message"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}
    if status >= 500 or any(e["type"] == "api_error" or e.get("code", status) >= 500 for e in errors):
        return f"status {status}, {errors}"
    if status >= 400 and not errors:
        return f"status {status} without an error"
    for error in errors:
        if set(error) != keys or not isinstance(error["message"], str):
            return f"no error of the API's shape: {error}"
        if len(error["message"]) > 1100:
            return f"a message of {len(error['message'])} characters"
        first, said = field.split(".")[0], f"{error.get('param')} {error['message']}"
        names = ALIASES.get(first, first)
        if not any(name in said for name in (first, *([names] if isinstance(names, str) else names))):
            return f"the error does not name the field: {error}"
    return None


def try_all(running: Running, cases: list[tuple[str, str, str, str]]) -> None:
    """Send every `(path, field, what, body)`, and ask something sound after them."""
    with httpx.Client(base_url=running.url, timeout=120) as client, ThreadPoolExecutor(4) as pool:

        def send(case: tuple[str, str, str, str]) -> str | None:
            path, field, what, body = case
            try:
                found = complaint(path, *ask(client, path, body), field)
            except httpx.HTTPError as error:
                found = f"no answer: {error!r}"
            return found and f"{path} {field} ({what}), {body[:200]}: {found}"

        failed = [f for f in pool.map(send, cases) if f is not None]
    assert not failed, f"{len(failed)} of {len(cases)}:\n" + "\n".join(failed[:40])
    assert running.get("/health").status_code == 200
    assert running.metric("engine_restarts_total") == 0
    assert not any("Traceback" in line for line in running.log), "".join(running.log[-40:])


def generated(running: Running, endpoints: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    document = running.get("/openapi.json").json()
    cases = []
    for path, sound in endpoints.items():
        for stream in (False, True) if path in STREAMED else (None,):
            given = sound if stream is None else {**sound, "stream": stream}
            for field, what, body in bodies(document, path, given):
                if not (stream and field == "stream"):
                    cases.append((path, field if field not in UNKNOWN else "", what, body))
    return cases


def test_every_endpoint_is_tried(generating: Running) -> None:
    paths = generating.get("/openapi.json").json()["paths"]
    with_bodies = {path for path, methods in paths.items() if "requestBody" in methods.get("post", {})}
    assert with_bodies == {*GENERATE, *CHATS, *EMBED, *CLASSIFY}


def test_every_field_of_what_generates(generating: Running) -> None:
    cases = generated(generating, GENERATE)
    assert {c[1] for c in cases} > {"temperature", "tools.function.name", "structured_outputs.choice", "tokens"}
    assert len(cases) > 100 * len(VALUES)
    try_all(generating, cases)
    answer = generating.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_every_field_of_other_chats(generating: Running) -> None:
    cases = generated(generating, CHATS)
    assert {c[1] for c in cases} > {"instructions", "system", "max_output_tokens"}
    try_all(generating, cases[::SHARE])


def test_bodies_that_no_schema_tells_of(generating: Running) -> None:
    cases = [(path, "", "", body) for path, body in BODIES]
    streamed = [(path, "", "", body[:-1] + ', "stream": true}') for path, body in BODIES if body.endswith("}")]
    try_all(generating, cases + streamed)


def test_every_field_of_what_embeds(tiny_model: Path) -> None:
    with server(str(tiny_model), *FLAGS, "--task", "embedding") as running:
        try_all(running, generated(running, EMBED))


def test_every_field_of_what_classifies(tmp_path: Path) -> None:
    with server(str(classifier(tmp_path)), *FLAGS) as running:
        try_all(running, generated(running, CLASSIFY))
