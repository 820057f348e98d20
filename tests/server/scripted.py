"""A server's endpoints over an engine that says what the test tells it to: any tokens, any log-probabilities."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.config import EngineArgs
from octavo.engine.messages import Output, Ready, Tokens
from octavo.loading.model_info import ModelInfo
from octavo.outputs import PackedLogprobs
from octavo.server.chat_completions import Chat
from octavo.server.completions import Completions
from octavo.server.metrics import Metrics
from octavo.server.protocol import ChatRequest, CompletionRequest
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import FastTokenizer, Tokenizer

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def byte_tokenizer(*special: str) -> FastTokenizer:
    """Byte-level, one token a byte, and these special tokens."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    return FastTokenizer(inner, {}, {"default": TEMPLATE})


class ScriptedClient:
    """What the HTTP process knows of the engine: here, a script."""

    state = "running"

    def __init__(self, answers: Sequence[Sequence[int]], finish: str, others: Sequence[int]) -> None:
        self.answers, self.finish_reason, self.others = answers, finish, others
        self.on_outputs: Callable[[list[Output]], None] = lambda messages: None
        self.saying: dict[str, asyncio.Future[None]] = {}
        self.ready = Ready(ModelInfo(task="generate", vocab_size=10_000, max_model_len=10_000), 8)

    def place(self, token: int, count: int | None) -> PackedLogprobs:
        """The token's own entry, the third likeliest, and those of the likeliest `count`."""
        likeliest = [(t, -float(rank) / 2, rank) for rank, t in enumerate([o for o in self.others if o != token], 1)]
        return [(token, -1.25, 3), *likeliest[: count or 0]]

    def add(self, request_id: str, prompt: Any, params: Any, priority: int = 0) -> None:
        """Begin to say what the script has."""

        async def say() -> None:
            async for message in self.messages(request_id, prompt, params):
                self.on_outputs([message])

        self.saying[request_id] = asyncio.ensure_future(say())

    def finish(self, request_id: str, index: int) -> None:
        """Such a script is said to its end."""

    def abort(self, request_id: str) -> None:
        self.saying[request_id].cancel()

    async def messages(self, request_id: str, prompt: Any, params: Any) -> AsyncGenerator[Output, None]:
        """Two tokens of each answer at a time, in turn."""
        about_prompt = None
        if params.prompt_logprobs is not None:
            about_prompt = [None, *(self.place(t, params.prompt_logprobs) for t in prompt.token_ids[1:])]
        for start in range(0, max(map(len, self.answers)) + 1, 2):
            for index, answer in enumerate(self.answers):
                ids, done = list(answer[start : start + 2]), start + 2 >= len(answer)
                if start and not ids:
                    continue
                yield Tokens(
                    request_id,
                    index,
                    ids,
                    None if params.logprobs is None else [self.place(t, params.logprobs) for t in ids],
                    self.finish_reason if done else None,
                    None,
                    0,
                    about_prompt,
                )
                await asyncio.sleep(0)


def service(tokenizer: Tokenizer | None, client: ScriptedClient, **options: Any) -> Service:
    made = Service(EngineArgs(), ServerOptions(**{"tool_parser": "none", **options}))
    made.client, made.tokenizer = client, tokenizer  # type: ignore[assignment]
    client.on_outputs = made.requests.on_outputs
    made.metrics = Metrics("scripted")
    made._checker = InputChecker(tokenizer, 10_000, 10_000, 20, None)
    return made


@dataclass
class Said:
    """An answer of a chat, as its client puts it together."""

    content: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] | None = field(default=None, compare=False)
    reasoning: str = ""
    ids: list[str] = field(default_factory=list, compare=False)
    texts: list[str] = field(default_factory=list, compare=False)
    """Arguments as they were written."""

    def take(self, message: dict[str, Any], choice: dict[str, Any]) -> None:
        self.content += message.get("content") or ""
        self.reasoning += message.get("reasoning") or ""
        assert message.get("reasoning") == message.get("reasoning_content")
        for one in message.get("tool_calls") or []:
            self._take_call(one)
        self.finish_reason = choice["finish_reason"] or self.finish_reason
        if choice["logprobs"] is not None:
            self.logprobs = (self.logprobs or []) + choice["logprobs"]["content"]

    def _take_call(self, one: dict[str, Any]) -> None:
        """A call, or of a stream what is new of one: its id and name come once, its arguments in pieces."""
        index, function = one.get("index", len(self.calls)), one["function"]
        if index == len(self.calls):
            assert one["type"] == "function"
            self.ids.append(one["id"])
            self.texts.append(function["arguments"])
            self.calls.append((function["name"], _read(function["arguments"])))
            return
        assert index == len(self.calls) - 1
        assert set(one) == {"index", "function"}
        self.texts[index] += function["arguments"]
        self.calls[index] = (self.calls[index][0], _read(self.texts[index]))


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def chat(
    tokenizer: Tokenizer,
    answers: Sequence[Sequence[int]],
    body: dict[str, Any],
    *,
    finish: str = "stop",
    others: Sequence[int] = (),
    **options: Any,
) -> tuple[list[Said], list[Said]]:
    """The answers to a chat, whole and streamed. With `finish="stop"` an end token, 0, comes behind each.

    `options` are the server's.
    """
    ids = [[*a, 0] if finish == "stop" else list(a) for a in answers]

    async def run() -> tuple[list[Said], list[Said]]:
        both = []
        for stream in (False, True):
            request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], **body})
            made = service(tokenizer, ScriptedClient(ids, finish, others), **options)
            work = Chat(made, request, made.models.base)
            await work.prepare()
            said = [Said() for _ in ids]
            if stream:
                async for event in work.events():
                    for choice in event["choices"]:
                        said[choice["index"]].take(choice["delta"], choice)
            else:
                for choice in (await work.whole())["choices"]:
                    said[choice["index"]].take(choice["message"], choice)
            both.append(said)
        return both[0], both[1]

    return asyncio.run(run())


def complete(
    tokenizer: Tokenizer | None,
    answer: Sequence[int],
    body: dict[str, Any],
    *,
    finish: str = "length",
    others: Sequence[int] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choice of a completion, whole (without what was not asked for) and put together of a stream's."""
    ids = [[*answer, 0] if finish == "stop" else list(answer)]

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        request = CompletionRequest.model_validate(body)
        made = service(tokenizer, ScriptedClient(ids, finish, others))
        work = Completions(made, request, made.models.base)
        await work.prepare()
        whole = (await work.whole())["choices"][0]
        optional = {"token_ids", "prompt_token_ids", "prompt_logprobs"}
        whole = {key: value for key, value in whole.items() if key not in optional or value is not None}
        made = service(tokenizer, ScriptedClient(ids, finish, others))
        work = Completions(made, request, made.models.base)
        await work.prepare()
        joined: dict[str, Any] = {}
        async for event in work.events():
            for choice in event["choices"]:
                _join(joined, choice)
        return whole, joined

    return asyncio.run(run())


def _join(joined: dict[str, Any], choice: dict[str, Any]) -> None:
    if not joined:
        joined.update(choice)
        return
    joined["text"] += choice["text"]
    for key, values in (choice["logprobs"] or {}).items():
        joined["logprobs"][key] = joined["logprobs"][key] + values
    for key in ("finish_reason", "stop_reason"):
        joined[key] = choice[key]
