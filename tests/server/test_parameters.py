"""Parameters of chats and completions that vLLM's clients send: what is told of tokens, and what is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams
from octavo.text.fill_in import between
from tests.server.conftest import write_tiny
from tests.server.running import Running, server

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}
TEXT: dict[str, Any] = {"prompt": "Hi", "max_tokens": 6, "temperature": 0}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


def streamed(running: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = running.post(path, {**body, "stream": True}).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def prompt_ids(answer: dict[str, Any]) -> Any:
    """Of a chat they are the answer's, of a completion its choice's."""
    return answer["choices"][0].get("prompt_token_ids", answer.get("prompt_token_ids"))


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_token_ids_are_told_where_they_are_asked_for(tiny_server: Running, path: str, body: dict[str, Any]) -> None:
    asked = {**body, "return_token_ids": True}
    whole = tiny_server.post(path, asked).json()
    prompt = body.get("prompt", "<|user|>Hi<|assistant|>")
    tokens = tiny_server.post("/tokenize", {"prompt": prompt}).json()["tokens"]
    assert prompt_ids(whole) == tokens
    ids = whole["choices"][0]["token_ids"]
    assert len(ids) == whole["usage"]["completion_tokens"]
    chunks = streamed(tiny_server, path, asked)
    assert prompt_ids(chunks[0]) == tokens
    assert not any(prompt_ids(chunk) for chunk in chunks[1:])
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids") or []] == ids
    plain = tiny_server.post(path, body).json()
    assert prompt_ids(plain) is plain["choices"][0]["token_ids"] is None
    assert not any("token_ids" in chunk["choices"][0] for chunk in streamed(tiny_server, path, body))


def test_a_prompt_alone_has_no_token_ids_of_an_answer(tiny_server: Running) -> None:
    asked = {"prompt": "Hi", "max_tokens": 0, "echo": True, "return_token_ids": True}
    (choice,) = tiny_server.post("/v1/completions", asked).json()["choices"]
    assert (choice["text"], choice["token_ids"]) == ("Hi", [])


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_usage_within_a_stream_is_asked_for_with_usage(tiny_server: Running, path: str, body: dict[str, Any]) -> None:
    for options, within, at_end in (
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": True}, False, True),
        ({"continuous_usage_stats": True}, False, False),
    ):
        chunks = streamed(tiny_server, path, {**body, "stream_options": options})
        *others, last = chunks
        assert bool(last.get("usage")) == (at_end or within)
        assert all(bool(chunk.get("usage")) == within for chunk in others)
        if within:
            assert others[-1]["usage"]["completion_tokens"] == last["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 4096}, "max_tokens=4096 cannot be greater than max_model_len=2048"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"truncation_side": "up", "truncate_prompt_tokens": 1}, "truncation_side"),
        ({"truncate_prompt_tokens": 4096}, "cannot be greater than max_model_len"),
    ],
)
@pytest.mark.parametrize(("path", "body"), PATHS)
def test_what_is_refused(
    tiny_server: Running, path: str, body: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    answer = tiny_server.post(path, {**body, **change})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "name", ["temperature", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p"]
)
@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e400"])
def test_numbers_are_finite(tiny_server: Running, name: str, value: str) -> None:
    body = json.dumps({**TEXT, name: 0}).replace(f'"{name}": 0', f'"{name}": {value}').encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(tiny_server.url + "/v1/completions", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    with pytest.raises(InvalidRequestError, match=name):
        SamplingParams(**{name: float(value)})


def test_a_long_prompt_is_told_as_clients_look_for_it(tiny_server: Running) -> None:
    answer = tiny_server.post("/v1/completions", {"prompt": [1] * 3000})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("This model's maximum context length is 2048 tokens")


def test_a_prompt_is_cut_at_the_side_that_is_named(tiny_server: Running) -> None:
    def kept(**body: Any) -> list[int]:
        asked = {"prompt": [5, 6, 7], "max_tokens": 1, "truncate_prompt_tokens": 2, "return_token_ids": True, **body}
        found: list[int] = tiny_server.post("/v1/completions", asked).json()["choices"][0]["prompt_token_ids"]
        return found

    assert (kept(), kept(truncation_side="left"), kept(truncation_side="right")) == ([6, 7], [6, 7], [5, 6])


FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a model whose tokenizer has Qwen2.5-Coder's tokens; all log-probabilities may be asked for."""
    folder: Path = write_tiny(tmp_path_factory.mktemp("coder") / "tiny")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    plain = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [{**plain, "id": 257 + i, "content": text} for i, text in enumerate(FIM)]
    file.write_text(json.dumps(tokenizer))
    with server(str(folder), "--kv-cache-memory", "64MiB", "--max-logprobs", "-1") as running:
        yield running


def test_a_suffix_is_put_as_the_model_knows_it(coder: Running, tiny_server: Running) -> None:
    asked = {**TEXT, "prompt": "def f(", "suffix": "): pass", "return_token_ids": True}
    (choice,) = coder.post("/v1/completions", asked).json()["choices"]
    written = "".join((FIM[0], "def f(", FIM[1], "): pass", FIM[2]))
    assert choice["prompt_token_ids"] == coder.post("/tokenize", {"prompt": written}).json()["tokens"]
    assert {257, 258, 259} <= set(choice["prompt_token_ids"])
    for running, body, message in (
        (tiny_server, asked, "no tokens for filling in"),
        (coder, {**asked, "echo": True}, "suffix and echo"),
        (coder, {**asked, "prompt": [1, 2]}, "prompts that are texts"),
    ):
        answer = running.post("/v1/completions", body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


def test_suffixes_of_other_families() -> None:
    class Known:
        def __init__(self, *texts: str) -> None:
            self.texts = texts

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [self.texts.index(text)] if text in self.texts else [99, 99]

        def token(self, token_id: int) -> str | None:
            return self.texts[token_id] if token_id < len(self.texts) else None

    for tokens, want in (
        (("[SUFFIX]", "[PREFIX]"), "[SUFFIX]b[PREFIX]a"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>a<fim_suffix>b<fim_middle>"),
    ):
        assert between(Known(*tokens), "a", "b") == want  # type: ignore[arg-type]


def test_all_log_probabilities(coder: Running, tiny_server: Running) -> None:
    asked = {**CHAT, "max_tokens": 2, "logprobs": True, "top_logprobs": -1}
    (choice,) = coder.post("/v1/chat/completions", asked).json()["choices"]
    assert [len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]] == [320, 320]
    for body, message in (
        (asked, "max_logprobs"),
        ({**asked, "logprobs": False}, "top_logprobs needs logprobs"),
        ({**asked, "top_logprobs": -2}, "top_logprobs"),
    ):
        answer = tiny_server.post("/v1/chat/completions", body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


def test_prompt_logprobs_of_a_chat(tiny_server: Running) -> None:
    answer = tiny_server.post("/v1/chat/completions", {**CHAT, "prompt_logprobs": 1}).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None
    assert all(entry["logprob"] <= 0 for place in answer["prompt_logprobs"][1:] for entry in place.values())
    assert tiny_server.post("/v1/chat/completions", CHAT).json()["prompt_logprobs"] is None


TAG = {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "[0-9]{2}"}, "end": "</a>"}


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_an_answer_follows_a_structural_tag(tiny_server: Running, path: str, body: dict[str, Any]) -> None:
    long = {**body, "max_tokens": 40}
    own = {"type": "structural_tag", "format": TAG}
    for asked in ({"response_format": own}, {"structured_outputs": {"structural_tag": json.dumps({"format": TAG})}}):
        answer = tiny_server.post(path, {**long, **asked})
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert re.fullmatch("<a>[0-9]{2}</a>", text)
    older = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<"]}
    assert tiny_server.post(path, {**body, "response_format": older}).status_code == 200
    for wrong, message in (
        ({"type": "structural_tag"}, "needs a format, or structures and triggers"),
        ({**own, "format": {"type": "mystery"}}, "'mystery' is unknown"),
        ({**older, "triggers": ["<b"]}, "begins with none of the triggers"),
    ):
        answer = tiny_server.post(path, {**body, "response_format": wrong})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
