"""Texts on their way to the engine: read beside the event loop, refused before they are read, thrown at tokenizers."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import httpx
import pytest

from octavo.engine.messages import Pooled, Ready
from octavo.errors import InvalidRequestError
from octavo.loading.model_info import ModelInfo
from octavo.params import PoolingParams, SamplingParams
from octavo.server.app import create_app
from octavo.server.service import Service
from octavo.server.work_threads import LONG, size_of
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import FastTokenizer, TransformersTokenizer
from tests.server.running import Running
from tests.server.scripted import ScriptedClient, byte_tokenizer, chat, service

TICKS = 20
"""Turns of the event loop that must pass while a text is read; one that waits for the text has none."""


class SlowTokenizer:
    """A tokenizer of Python code that does not end before the event loop has gone on."""

    def __init__(self, inner: FastTokenizer) -> None:
        self.__dict__.update(vars(inner))
        self.own = inner
        self.ticked = threading.Event()
        self.waited: list[bool] = []

    def _wait(self) -> None:
        self.waited.append(self.ticked.wait(60))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self._wait()
        return self.own.encode(text, add_special_tokens)

    def encode_pair(self, first: str, second: str) -> list[int]:
        self._wait()
        return self.own.encode_pair(first, second)

    def decode(self, ids: Sequence[int], *options: Any, **named: Any) -> str:
        if len(ids) > 100:
            self._wait()
        return self.own.decode(ids, *options, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


class PoolingClient(ScriptedClient):
    """An engine that gives each input two values."""

    def __init__(self, task: str) -> None:
        super().__init__([[0]], "stop", [])
        self.ready = Ready(ModelInfo(task=task, vocab_size=10_000, max_model_len=10_000, num_scores=1), 8)

    async def messages(self, request_id: str, prompt: Any, params: Any) -> Any:
        yield Pooled(request_id, (2,), b"\0\0\x80?\0\0\x80?", 0)


TEXT = "some text " * 5
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "completions": ("generate", "/v1/completions", {"prompt": TEXT, "max_tokens": 1}),
    "completions, salted": ("generate", "/v1/completions", {"prompt": TEXT, "cache_salt": "s", "max_tokens": 1}),
    "completions of several": ("generate", "/v1/completions", {"prompt": [TEXT, TEXT], "max_tokens": 1}),
    "completions, echoed": ("generate", "/v1/completions", {"prompt": TEXT, "echo": True, "max_tokens": 1}),
    "chats": ("generate", "/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
    "embeddings": ("embedding", "/v1/embeddings", {"input": TEXT}),
    "embeddings of several": ("embedding", "/v1/embeddings", {"input": [TEXT, TEXT]}),
    "pooling": ("embedding", "/pooling", {"input": TEXT}),
    "classes": ("classify", "/classify", {"input": TEXT}),
    "scores of embeddings": ("embedding", "/score", {"text_1": TEXT, "text_2": TEXT}),
    "scores of a classifier": ("classify", "/score", {"text_1": TEXT, "text_2": [TEXT, TEXT]}),
    "ranks": ("classify", "/rerank", {"query": TEXT, "documents": [TEXT]}),
    "tokens of a prompt": ("generate", "/tokenize", {"prompt": TEXT, "return_token_strs": True}),
    "tokens of a chat": ("generate", "/tokenize", {"messages": [{"role": "user", "content": TEXT}]}),
    "text of tokens": ("generate", "/detokenize", {"tokens": [70] * 1000}),
}


async def ticking(work: Coroutine[Any, Any, Any], on_tick: Callable[[int], None] = lambda count: None) -> Any:
    """The work's result, and how often the event loop went round meanwhile."""
    task, count = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
        on_tick(count)
    return task.result(), count


async def ask(made: Service, path: str, body: dict[str, Any]) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(made))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return await client.post(path, json=body, timeout=60)


@pytest.mark.parametrize("name", REQUESTS)
def test_others_go_on_while_a_text_is_read(name: str) -> None:
    """Every endpoint: the tokenizer ends only once the loop has gone round, which it cannot from the loop itself."""
    task, path, body = REQUESTS[name]
    tokenizer = SlowTokenizer(byte_tokenizer("</s>"))
    client = ScriptedClient([[70]], "stop", []) if task == "generate" else PoolingClient(task)
    made = service(tokenizer, client)  # type: ignore[arg-type]

    def on_tick(count: int) -> None:
        if count == TICKS * 50:
            tokenizer.ticked.set()

    response, _ = asyncio.run(ticking(ask(made, path, body), on_tick))
    assert response.status_code == 200, response.text
    assert tokenizer.waited
    assert all(tokenizer.waited)


def test_others_go_on_while_a_giant_text_is_tokenized() -> None:
    """3.5 MB: the call lets go of the interpreter, so that the loop goes round all the while."""
    tokenizer = byte_tokenizer("</s>")
    made = service(tokenizer, ScriptedClient([[70]], "stop", []))
    giant = "hello world " * 300_000

    async def encoded() -> list[int]:
        return await made.threads.run(len(giant), tokenizer.encode, giant)

    ids, ticks = asyncio.run(ticking(encoded()))
    assert len(ids) == len(giant)
    assert ticks > TICKS


def test_long_texts_do_not_hold_short_ones() -> None:
    """More long ones than there are threads for them; a short one ends before any of them."""
    made, ended = service(None, ScriptedClient([[70]], "stop", [])), threading.Event()

    async def run() -> str:
        long = [asyncio.ensure_future(made.threads.run(1 << 20, ended.wait, 30)) for _ in range(8)]
        short = await made.threads.run(10, lambda: "short")
        ended.set()
        assert all(await asyncio.gather(*long))
        return short

    assert asyncio.run(run()) == "short"


def checker(longest: int, room: int = 101) -> tuple[InputChecker, list[str]]:
    """A checker whose tokenizer counts the texts that it reads, a token for each character."""
    read: list[str] = []

    class Counting:
        longest_token = longest

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            read.append(text)
            return [1] * len(text)

        def encode_pair(self, first: str, second: str) -> list[int]:
            return self.encode(first + second)

        def token(self, token_id: int) -> str | None:
            return None

    return InputChecker(Counting(), 10, room, 5), read  # type: ignore[arg-type]


def test_texts_that_are_too_long_are_not_read() -> None:
    made, read = checker(longest=4)
    for prompt in ("x" * 401, {"prompt": "x" * 401}, {"prompt": "x" * 401, "add_special_tokens": False}):
        with pytest.raises(InvalidRequestError, match=r"401 characters; 100 tokens.*have 400 at most"):
            made.prompt(prompt, SamplingParams())
    with pytest.raises(InvalidRequestError, match="405 characters"):
        made.encode_pair("x" * 400, "x" * 5, PoolingParams())
    assert read == []
    with pytest.raises(InvalidRequestError, match="the prompt has 400 tokens"):
        made.prompt("x" * 400, SamplingParams())
    assert len(made.prompt("x" * 401, SamplingParams(truncate_prompt_tokens=5)).token_ids) == 5
    assert [len(text) for text in read] == [400, 401, 401]  # what is cut is read without special tokens too


def test_the_servers_own_words_for_it(tiny_server: Running) -> None:
    giant = "x" * 3_000_000
    for path, body in (
        ("/v1/completions", {"prompt": giant}),
        ("/v1/completions", {"prompt": ["x", giant]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": giant}]}),
    ):
        answer = tiny_server.post(path, body)
        assert answer.status_code == 400
        assert "characters" in answer.json()["error"]["message"]
    answer = tiny_server.post("/tokenize", {"prompt": giant})
    assert answer.json()["count"] == len(giant)
    ids = [70] * 300_000
    assert tiny_server.post("/detokenize", {"tokens": ids}).json() == {
        "prompt": tiny_server.post("/detokenize", {"tokens": [70]}).json()["prompt"] * 300_000
    }


def test_bad_words_are_read_once_and_in_linear_time() -> None:
    """Each word twice, at the start and inside a text, however often it is named; those that cannot come are left."""
    made, read = checker(longest=4)
    words = [f"w{i}" for i in range(3000)] * 3
    found = made.bad_words(SamplingParams(bad_words=[*words, "x" * 100_000]))
    assert len(read) == 6000
    assert {len(ids) for ids in found} == {len(text) for text in read}
    throwing = InputChecker(TransformersTokenizer(Throwing(), {}), 100, 100, 5)
    with pytest.raises(InvalidRequestError, match=r"bad_words: the tokenizer failed"):
        throwing.bad_words(SamplingParams(bad_words=["a", "fail"]))


def test_bad_words_beyond_the_models_vocabulary() -> None:
    tokenizer = byte_tokenizer("</s>", "<more>")
    made = InputChecker(tokenizer, 257, 100, 5)
    found = made.bad_words(SamplingParams(bad_words=["<more>", "a"]))
    assert found == [tokenizer.encode("a"), tokenizer.encode(" a")]


def test_prompts_beyond_the_models_vocabulary() -> None:
    """The text of the token that the model does not have is what its user knows."""
    made = InputChecker(byte_tokenizer("</s>", "<more>"), 257, 100, 5)
    with pytest.raises(InvalidRequestError, match=r"the prompt holds '<more>'.*token 257.*has 257 tokens"):
        made.prompt("a<more>", SamplingParams())
    with pytest.raises(InvalidRequestError, match="prompt_token_ids holds 257, outside"):
        made.prompt([257], SamplingParams())


def test_text_of_tokens_beyond_the_models_vocabulary() -> None:
    tokenizer = byte_tokenizer("</s>", "<more>")
    client = ScriptedClient([[70]], "stop", [])
    client.ready = Ready(ModelInfo(task="generate", vocab_size=257, max_model_len=100), 8)
    made = service(tokenizer, client)
    ids = tokenizer.encode("a<more>")
    assert asyncio.run(ask(made, "/detokenize", {"tokens": ids})).json() == {"prompt": "a<more>"}
    for wrong in (258, -1, 2**40):
        answer = asyncio.run(ask(made, "/detokenize", {"tokens": [wrong]}))
        assert (answer.status_code, str(wrong) in answer.text) == (400, True)


class Throwing:
    """Python code that fails on one word."""

    eos_token_id = bos_token_id = None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012
    is_fast = False

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def encode(self, text: str, pair: str = "", add_special_tokens: bool = True) -> list[int]:
        if "fail" in text + pair:
            raise KeyError("fail")
        return [70]

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return "a" * len(ids)

    def convert_ids_to_tokens(self, index: int) -> str:
        return "a"


@pytest.mark.parametrize(
    ("task", "path", "body"),
    [
        ("generate", "/v1/completions", {"prompt": "fail"}),
        ("generate", "/v1/completions", {"prompt": ["a", "fail"]}),
        ("generate", "/v1/chat/completions", {"messages": [{"role": "user", "content": "fail"}]}),
        ("generate", "/tokenize", {"prompt": "fail"}),
        ("embedding", "/v1/embeddings", {"input": ["a", "fail"]}),
        ("embedding", "/pooling", {"input": "fail"}),
        ("classify", "/score", {"text_1": "a", "text_2": "fail"}),
        ("classify", "/rerank", {"query": "fail", "documents": ["a"]}),
    ],
)
def test_a_tokenizer_that_throws_is_that_requests_400(task: str, path: str, body: dict[str, Any]) -> None:
    tokenizer = TransformersTokenizer(Throwing(), {"default": "{{ messages[0].content }}"})
    client = ScriptedClient([[70]], "stop", []) if task == "generate" else PoolingClient(task)
    made = service(tokenizer, client)
    answer = asyncio.run(ask(made, path, body))
    assert answer.status_code == 400
    assert "the tokenizer failed on this text (KeyError" in answer.json()["error"]["message"]


def test_special_tokens_of_a_completion() -> None:
    """`add_special_tokens` is obeyed."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer("<s>")
    tokenizer.inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    for add, count in ((None, 2), (True, 2), (False, 1)):
        made = service(tokenizer, ScriptedClient([[70]], "stop", []))
        body = {"prompt": "a", "max_tokens": 1, "add_special_tokens": add}
        usage = asyncio.run(ask(made, "/v1/completions", body)).json()["usage"]
        assert usage["prompt_tokens"] == count


def test_an_agents_second_turn_over_http(smollm_server: Running) -> None:
    """What the server said is sent back as it is, with the tool's result."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    talk = [{"role": "user", "content": "Weather?"}]
    asked = {"messages": talk, "tools": [tool], "tool_choice": "required", "max_tokens": 60, "temperature": 0}
    said = smollm_server.post("/v1/chat/completions", asked).json()["choices"][0]["message"]
    assert said["content"] is None
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "sunny"} for c in said["tool_calls"]]
    answer = smollm_server.post("/v1/chat/completions", {"messages": [*talk, said, *results], "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    for messages in (parts, [{"role": "user", "content": "Hello"}]):
        assert smollm_server.post("/tokenize", {"messages": messages}).json()["count"] > 5


def test_hostile_templates_over_http(tiny_server: Running) -> None:
    """One chat's template does not keep the others from theirs; it is not taken at all without trust."""
    body = {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ 1 / 0 }}", "max_tokens": 1}
    assert "--trust-request-chat-template" in tiny_server.post("/v1/chat/completions", body).json()["error"]["message"]
    named = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"loop": 1}, "max_tokens": 1}
    answer = tiny_server.post("/v1/chat/completions", named)
    assert (answer.status_code, "loop" in answer.text) == (400, True)


def test_what_is_long_is_not_counted_to_its_end() -> None:
    """That a request is long is told in bounded time, on the event loop."""

    class Counted(list[Any]):
        taken = 0

        def __iter__(self) -> Iterator[Any]:
            for item in super().__iter__():
                self.taken += 1
                yield item

    many = Counted([{"role": "user", "content": ""}] * 20_000)
    assert size_of(many) > LONG
    assert many.taken < LONG
    assert (size_of([1] * 5), size_of(["ab", None, ("c",)]), size_of({"a": None, "b": "cd"}), size_of(7)) == (
        5,
        7,
        4,
        0,
    )
    assert size_of({str(i): None for i in range(LONG + 1)}) > LONG


def test_short_chats_do_not_wait_for_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many long conversations are being rendered: each could take its whole time."""
    released = threading.Event()

    def render(tokenizer: Any, messages: Any, **options: Any) -> dict[str, Any]:
        if len(messages) > 1:
            assert released.wait(60)
        return {"prompt": "a"}

    monkeypatch.setattr("octavo.server.chat_completions.chat_prompt", render)
    made = service(byte_tokenizer(), ScriptedClient([[70]] * 9, "stop", []))
    short = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    long = {"messages": [{"role": "user", "content": "x" * 20_000}] * 2, "max_tokens": 1}

    async def both() -> list[int]:
        waiting = [asyncio.ensure_future(ask(made, "/v1/chat/completions", long)) for _ in range(8)]
        first = await ask(made, "/v1/chat/completions", short)
        released.set()
        return [first.status_code, *(answer.status_code for answer in await asyncio.gather(*waiting))]

    assert asyncio.run(both()) == [200] * 9


def test_usage_of_every_chunk() -> None:
    """Of both endpoints, with `continuous_usage_stats`."""
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    for path, body in (
        ("/v1/completions", {"prompt": "ab", "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3}),
    ):
        made = service(byte_tokenizer(), ScriptedClient([[70, 71, 72]], "length", []))
        lines = asyncio.run(ask(made, path, {**body, **options})).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 3
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {2}


@pytest.mark.parametrize("content", ["ab", [{"type": "text", "text": "ab"}]])
def test_a_chat_repeats_what_it_goes_on(content: Any) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]
    body = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 2}
    for (answer,) in chat(byte_tokenizer(), [[70, 71]], body, finish="length"):
        assert answer.content.startswith("ab")
        assert len(answer.content) == 4
    (answer,), _ = chat(byte_tokenizer(), [[70, 71]], {"echo": True}, finish="length")
    assert len(answer.content) == 2  # there is nothing of the assistant's to repeat


def test_who_asks_is_in_the_request_log(caplog: pytest.LogCaptureFixture) -> None:
    made = service(byte_tokenizer(), ScriptedClient([[70]], "stop", []))
    with caplog.at_level("INFO", "octavo.requests"):
        asyncio.run(ask(made, "/v1/completions", {"prompt": "a", "user": "customer 7"}))
    assert json.loads(caplog.messages[-1])["user"] == "customer 7"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "logprobs=true"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "not both"),
    ],
)
def test_what_would_be_ignored_is_refused(path: str, body: dict[str, Any], message: str) -> None:
    answer = asyncio.run(ask(service(byte_tokenizer(), ScriptedClient([[70]], "stop", [])), path, body))
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
