"""What the endpoints have in common: prompts checked, requests run, tokens made text, times counted."""

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError, OctavoError
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.outputs import TokenLogprobs
from octavo.params import PoolingParams, SamplingParams, recommended_sampling
from octavo.server.admission import Admission
from octavo.server.engine_client import EngineClient
from octavo.server.logprobs import TokenEntry
from octavo.server.messages import Pooled, Ready, Stats, Tokens, unpack_logprobs
from octavo.server.metrics import Metrics, RequestClock
from octavo.server.options import ServerOptions
from octavo.server.threads import TextThreads, size_of
from octavo.text.chat_prompt import render_chat
from octavo.text.detokenizer import TextStream
from octavo.text.inputs import CheckedPrompt, EncoderInput, InputChecker
from octavo.text.token_text import TokenText
from octavo.text.tokenizer import Tokenizer


class ModelUnknownError(OctavoError):
    """The client names a model that is not here."""


class RequestTimeoutError(OctavoError):
    """A request took longer than the server allows."""


_notes: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)


def take_notes() -> dict[str, Any]:
    """A dict that what this task does from now on writes into, for the request's line in the log."""
    notes: dict[str, Any] = {}
    _notes.set(notes)
    return notes


def note(**values: Any) -> None:
    """Add to the line that is written of this HTTP request. Numbers of several runs are added up."""
    notes = _notes.get()
    if notes is not None:
        for key, value in values.items():
            notes[key] = notes.get(key, 0) + value if isinstance(value, int) else value


@dataclass
class Piece:
    """What came new for one of a request's answers."""

    index: int
    text: str
    token_ids: list[int]
    entries: list[TokenEntry]
    """The tokens whose text is certain, where log-probabilities are asked for."""
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass
class Answer:
    """One whole answer."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Text:
    """The text of one of a request's answers, and the tokens that wait until theirs is certain."""

    def __init__(self, tokenizer: Tokenizer | None, run: "Run") -> None:
        self.stream = None if tokenizer is None else TextStream(tokenizer, run.prompt.token_ids, run.params, run.shown)
        self._ends_as_text = run.params.include_stop_str_in_output
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()

    def piece(self, output: Tokens) -> Piece:
        """What came new."""
        token_ids, logprobs = output.token_ids, output.logprobs
        piece = Piece(output.index, "", token_ids, [], output.finish_reason, output.stop_reason)
        if self.stream is not None:
            # The token that ended the answer is no part of its text, unless asked for.
            ended = output.finish_reason == "stop" and not self._ends_as_text
            for i, token in enumerate(token_ids):
                if ended and i + 1 == len(token_ids):
                    self.stream.end()
                else:
                    self.stream.add(token)
                if self.stream.stop is not None:
                    piece.token_ids = token_ids[: i + 1]
                    piece.finish_reason, piece.stop_reason = "stop", self.stream.stop
                    break
            piece.text = self.stream.take(piece.finish_reason is not None)
        if logprobs is not None:
            self._waiting += [(t, unpack_logprobs(p)) for t, p in zip(piece.token_ids, logprobs, strict=False)]
        piece.entries = self._entries(piece.finish_reason is not None)
        return piece

    def _entries(self, finished: bool) -> list[TokenEntry]:
        if self.stream is None:
            texts = [TokenText("", b"")] * len(self._waiting)
        else:
            texts = self.stream.take_tokens(finished)
        return [TokenEntry(*self._next(text)) for text in texts if self._waiting]

    def _next(self, text: TokenText) -> tuple[int, TokenText, TokenLogprobs]:
        token, logprobs = self._waiting.popleft()
        return token, text, logprobs


@dataclass
class Run:
    """A request on its way: its prompt, and what it has used so far."""

    request_id: str
    prompt: CheckedPrompt
    params: SamplingParams
    num_cached: int = 0
    num_generated: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    shown: dict[int, str] = field(default_factory=dict)
    """Special tokens that are in the text though others are skipped, and what stands for them."""

    def usage(self) -> dict[str, Any]:
        prompt, generated = len(self.prompt.encoder_token_ids or self.prompt.token_ids), self.num_generated
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }


class Service:
    """One model behind the endpoints. Between `start()` and `stop()` it takes requests."""

    def __init__(self, args: EngineArgs, options: ServerOptions) -> None:
        self.args, self.options = args, options
        self.model_name = options.served_model_name or args.model
        self.created = int(time.time())
        self.client = EngineClient(args, on_stats=self._on_stats)
        self.tokenizer: Tokenizer | None = None
        self.chat_template: str | None = None
        self.metrics: Metrics | None = None
        self.admission = Admission(options)
        self.accepting = True
        self.threads = TextThreads()
        self._checker: InputChecker | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the tokenizer here while the model loads there. Raises OctavoError with the reason for what fails."""
        loading = asyncio.create_task(self.client.start())
        try:
            self.tokenizer = await asyncio.to_thread(self._load_tokenizer)
        except BaseException:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            raise
        ready = await loading
        if self.options.chat_template is not None:
            try:
                with open(self.options.chat_template, encoding="utf-8") as file:
                    self.chat_template = file.read()
            except (OSError, UnicodeDecodeError) as error:
                raise OctavoError(f"chat_template {self.options.chat_template} cannot be read: {error}") from error
        self.metrics = Metrics(self.model_name)
        encoder = EncoderInput(ready.max_model_len, ready.decoder_start_token_id) if ready.has_encoder else None
        self._checker = InputChecker(
            self.tokenizer, ready.vocab_size, ready.max_model_len, self.args.max_logprobs, encoder
        )

    def _load_tokenizer(self) -> Tokenizer | None:
        tokenizer = model_tokenizer(self.args)
        if tokenizer is not None:
            _ = tokenizer.longest_token  # found once, and now rather than while a request waits
            if tokenizer.chat_templates:  # likewise the process that renders, and what the template takes
                with contextlib.suppress(InvalidRequestError):
                    render_chat(tokenizer, [{"role": "user", "content": "Hello"}])
        return tokenizer

    def begin_stop(self) -> "asyncio.Task[None]":
        """Take nothing more, let what runs finish for `shutdown_timeout`, then end: all of it in a task."""
        self._stopping = self._stopping or asyncio.ensure_future(self._stop())
        return self._stopping

    async def stop(self) -> None:
        """Do that, and wait for it."""
        await self.begin_stop()
        self.threads.stop()

    async def _stop(self) -> None:
        self.accepting = False
        deadline = time.monotonic() + self.options.shutdown_timeout
        while (self.client.num_requests or self.admission.load.requests) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self.client.stop()

    @property
    def ready(self) -> Ready:
        assert self.client.ready is not None
        return self.client.ready

    @property
    def healthy(self) -> bool:
        return self.accepting and self.client.state == "running"

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampling values that the model's generation_config.json recommends."""
        return recommended_sampling(self.ready.generation_config)

    def serves(self, model: str | None, *tasks: str) -> None:
        """Raises ModelUnknownError for another model's name, InvalidRequestError for what this one does not do."""
        if model and model not in (self.model_name, self.args.model):
            raise ModelUnknownError(f"the model {model!r} is not served here; {self.model_name!r} is.")
        if self.ready.task not in tasks:
            raise InvalidRequestError(
                f"this server was started for task {self.ready.task!r}; this is for {' or '.join(tasks)}."
            )

    def _on_stats(self, stats: Stats, restarts: int) -> None:
        if self.metrics is not None:
            self.metrics.take(stats, self.ready.num_blocks, restarts)

    async def check(self, prompt: Any, params: SamplingParams | PoolingParams) -> CheckedPrompt:
        """Tokenized and checked, off the event loop."""
        return (await self.check_all([prompt], params))[0]

    async def check_all(self, prompts: list[Any], params: SamplingParams | PoolingParams) -> list[CheckedPrompt]:
        """Several prompts, tokenized and checked off the event loop. An error says which prompt it is of."""
        checked = await self.threads.run(size_of(prompts), self._checked, prompts, params)
        if self.options.log_prompts:
            for one in checked:
                note(prompt=one.text if one.text is not None else one.token_ids)
        return checked

    def _checked(self, prompts: list[Any], params: SamplingParams | PoolingParams) -> list[CheckedPrompt]:
        assert self._checker is not None
        if isinstance(params, SamplingParams):
            self._checker.sampling(params)
        checked = []
        for i, prompt in enumerate(prompts):
            try:
                checked.append(self._checker.prompt(prompt, params))
            except InvalidRequestError as error:
                raise InvalidRequestError(f"input {i}: {error}" if len(prompts) > 1 else str(error)) from error
        return checked

    async def encode_pairs(self, pairs: list[tuple[str, str]], params: PoolingParams) -> list[list[int]]:
        """Token ids of each two texts that are one input."""
        checker = self._checker
        assert checker is not None
        return await self.threads.run(size_of(pairs), lambda: [checker.encode_pair(a, b, params) for a, b in pairs])

    @staticmethod
    def new_id(kind: str) -> str:
        return f"{kind}-{uuid.uuid4().hex}"

    async def generate(self, run: Run, priority: int = 0) -> AsyncGenerator[Piece, None]:
        """Pieces of a request's answers as they come. Closing the generator ends the request.

        Raises OctavoErrors for what cannot run, takes too long, or ran into the engine's end.
        """
        assert self.metrics is not None
        params = run.params
        texts = [Text(self.tokenizer, run) for _ in range(params.n)]
        done, reason, clock = [False] * params.n, "abort", RequestClock(self.metrics)
        engine_params = params.clone()
        engine_params.stop = []  # stop strings are found here, where the text is
        source = self.client.generate(run.request_id, run.prompt, engine_params, priority)
        try:
            async with contextlib.aclosing(source):
                async for output in self._in_time(source):
                    assert isinstance(output, Tokens)
                    if done[output.index]:
                        continue
                    piece = self._piece(run, output, texts[output.index])
                    clock.came(len(piece.token_ids))
                    done[piece.index] = piece.finish_reason is not None
                    reason = piece.finish_reason or reason
                    yield piece
                    if all(done):
                        return
        finally:
            clock.end(reason if all(done) else "abort")
            note(
                prompt_tokens=len(run.prompt.encoder_token_ids or run.prompt.token_ids),
                completion_tokens=run.num_generated,
                finish=reason if all(done) else "abort",
            )

    async def _in_time(self, source: AsyncGenerator[Tokens | Pooled, None]) -> AsyncGenerator[Tokens | Pooled, None]:
        """What `source` gives. Raises RequestTimeoutError where it does not end within the server's limit."""
        deadline = asyncio.get_running_loop().time() + self.options.request_timeout
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    output = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the request was ended after {self.options.request_timeout:g} s. Ask for less."
                ) from error
            yield output

    @staticmethod
    def _piece(run: Run, output: Tokens, text: Text) -> Piece:
        run.num_cached = max(run.num_cached, output.num_cached or 0)
        if output.prompt_logprobs is not None and run.prompt_logprobs is None:
            run.prompt_logprobs = [None if p is None else unpack_logprobs(p) for p in output.prompt_logprobs]
        piece = text.piece(output)
        if piece.finish_reason == "error":
            raise (InvalidRequestError if output.is_invalid else OctavoError)(str(piece.stop_reason))
        run.num_generated += len(piece.token_ids)
        return piece

    async def whole(self, run: Run, priority: int = 0) -> list[Answer]:
        """A request's answers, when all are there."""
        answers = [Answer() for _ in range(run.params.n)]
        async for piece in self.generate(run, priority):
            answer = answers[piece.index]
            answer.text += piece.text
            answer.token_ids += piece.token_ids
            answer.entries += piece.entries
            answer.finish_reason, answer.stop_reason = piece.finish_reason, piece.stop_reason
        return answers

    async def pool(self, prompt: CheckedPrompt, params: PoolingParams) -> "np.ndarray[Any, Any]":
        """A pooling request's result as float32."""
        assert self.metrics is not None
        clock, reason = RequestClock(self.metrics), "abort"
        source = self.client.generate(self.new_id("pool"), prompt, params)
        try:
            async with contextlib.aclosing(source):
                async for output in self._in_time(source):
                    assert isinstance(output, Pooled)
                    reason = "stop"
                    return np.frombuffer(output.data, np.float32).reshape(output.shape)
        finally:
            clock.end(reason)
        raise OctavoError("the engine gave no result.")

    async def pool_all(self, prompts: list[Any], params: PoolingParams) -> "tuple[list[np.ndarray[Any, Any]], int]":
        """Results of many prompts, computed together, and how many tokens they had."""
        self.admission.admit(len(prompts))
        checked = await self.check_all(prompts, params)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.pool(c, params)) for c in checked]
        return [t.result() for t in tasks], sum(len(c.token_ids) for c in checked)
