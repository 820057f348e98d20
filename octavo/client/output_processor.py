"""What comes of a request, made of what the engine says of it: text as it grows, stop strings, log-probabilities."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from octavo.client.engine_client import EngineClient
from octavo.engine.messages import Output, Pooled, Tokens
from octavo.errors import RequestFailedError, failure
from octavo.outputs import (
    CompletionOutput,
    FlatLogprobs,
    Logprob,
    PackedLogprobs,
    PoolingOutput,
    PoolingRequestOutput,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
)
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.detokenizer import TextStream
from octavo.text.token_text import TokenText, TokenTexts, token_texts
from octavo.text.tokenizer import Tokenizer

NO_TEXT = TokenText("", b"")


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token of an answer or a prompt: what it has of the text, and the log-probabilities at its place."""

    token_id: int
    text: TokenText
    logprobs: TokenLogprobs | None


@dataclass
class Chunk(CompletionOutput):
    """A CompletionOutput whose log-probabilities come with the text: a token's once its text is certain."""

    entries: list[TokenEntry] = field(default_factory=list)


class Answer:
    """One of a request's sequences.

    Args:
        index: its number in the request.
        params: of the request.
        stream: its text; None where there is none.
        texts: decodes the tokens of log-probabilities; None where they have no text.
        with_entries: give Chunks.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        stream: TextStream | None,
        texts: TokenTexts | None,
        with_entries: bool,
    ) -> None:
        self.index, self.params, self.stream = index, params, stream
        self._texts, self._with_entries = texts, with_entries
        self.cumulative_logprob = 0.0
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.is_invalid = False
        self.ended_here = False
        """Whether a stop string or a failure ended it, of which the engine does not know."""
        self._token_ids: list[int] = []
        self._logprobs = self._no_logprobs()
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()
        """Tokens whose text is not certain yet."""
        self.is_due = False
        """Whether there are tokens, or an end (which may come without any), that no output has told yet."""

    def _no_logprobs(self) -> list[TokenLogprobs] | FlatLogprobs:
        return FlatLogprobs() if self.params.flat_logprobs else []

    def add(self, message: Tokens) -> None:
        """Take what is new. Whatever comes after the end is left out."""
        if self.finish_reason is not None:
            return
        self.is_due = True
        # The token that ended the answer is no part of its text, unless asked for.
        ended = message.finish_reason == "stop" and not self.params.include_stop_str_in_output
        last, logprobs = len(message.token_ids) - 1, message.logprobs
        try:
            for place, token_id in enumerate(message.token_ids):
                self.append(token_id, None if logprobs is None else logprobs[place], ended and place == last)
                if self.finish_reason is not None:
                    break
        except BaseException as error:  # the tokenizer's or the text's: of this sequence alone
            self.finish_reason, self.stop_reason = "error", failure(error)
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason = message.finish_reason, message.stop_reason
            self.is_invalid = message.is_invalid
        else:
            self.ended_here = message.finish_reason is None

    def append(self, token_id: int, packed: PackedLogprobs | None, is_end: bool) -> None:
        """Take a token: its log-probabilities, then its text, and see whether a stop string has come."""
        self._token_ids.append(token_id)
        self.num_tokens += 1
        if packed is not None:
            self.cumulative_logprob += packed[0][1]
            entries = unpack_logprobs(packed, self._texts)
            if self._with_entries:
                self._waiting.append((token_id, entries))
            else:
                self._logprobs.append(entries)
        if self.stream is None:
            return
        if is_end:
            self.stream.end()
            return
        self.stream.add(token_id)
        if self.stream.stop is not None:
            self.finish_reason, self.stop_reason = "stop", self.stream.stop

    def output(self, kind: RequestOutputKind) -> CompletionOutput:
        """What a RequestOutput of this kind shows of the sequence."""
        finished, self.is_due = self.finish_reason is not None, False
        token_ids, logprobs, text = self._token_ids, self._logprobs, ""
        if kind is RequestOutputKind.DELTA:
            self._token_ids, self._logprobs = [], self._no_logprobs()
            text = "" if self.stream is None else self.stream.take(finished)
        else:
            token_ids, logprobs = token_ids.copy(), logprobs.copy()
            text = "" if self.stream is None else self.stream.visible(finished)
        entries = [self._entries(finished)] if self._with_entries else []
        return (Chunk if self._with_entries else CompletionOutput)(
            self.index,
            text,
            token_ids,
            self.cumulative_logprob if self.params.logprobs is not None else None,
            logprobs if self.params.logprobs is not None and not self._with_entries else None,
            self.finish_reason,
            self.stop_reason,
            None,
            self.is_invalid,
            *entries,
        )

    def _entries(self, finished: bool) -> list[TokenEntry]:
        if self.params.logprobs is None and self.stream is not None:
            self.stream.drop_tokens()
            return []
        if self.stream is None:
            texts: Sequence[TokenText] = [NO_TEXT] * len(self._waiting)
        else:
            texts = self.stream.take_tokens(finished)
        entries = []
        for text in texts[: len(self._waiting)]:
            token_id, logprobs = self._waiting.popleft()
            entries.append(TokenEntry(token_id, text, logprobs))
        return entries


class OutputProcessor:
    """Makes a generation request's RequestOutputs of what the engine says, wherever it runs.

    Args:
        request_id: the request's.
        prompt: its prompt.
        params: its sampling values.
        tokenizer: None for no text.
        shown: special tokens that are in the text though others are skipped, and what stands for them.
        with_entries: make the answers Chunks.
    """

    def __init__(
        self,
        request_id: str,
        prompt: CheckedPrompt,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        shown: dict[int, str] | None = None,
        with_entries: bool = False,
    ) -> None:
        self.request_id, self.prompt = request_id, prompt
        self.params = params.clone()
        """What the engine is to follow."""
        if params.num_sequences > params.n and params.logprobs is None:
            self.params.logprobs = 0  # best_of ranks by log-probability
        has_text = tokenizer is not None and params.detokenize
        self._texts = token_texts(tokenizer) if tokenizer is not None and has_text else None
        self.answers = [
            Answer(
                index,
                self.params,
                TextStream(tokenizer, prompt.token_ids, params, shown) if tokenizer is not None and has_text else None,
                None if with_entries else self._texts,
                with_entries,
            )
            for index in range(params.num_sequences)
        ]
        self.metrics = RequestMetrics(arrival_time=time.time())
        self.num_cached = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._has_told_prompt = False

    @property
    def finished(self) -> bool:
        """Whether all of the request's sequences have ended."""
        return all(answer.finish_reason is not None for answer in self.answers)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence so far."""
        return [answer.num_tokens for answer in self.answers]

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences so far."""
        return self.answers[0].num_tokens if len(self.answers) == 1 else sum(self.lengths)

    def add(self, message: Output) -> None:
        """Take new tokens. A sequence that fails with them ends as an error, and the others go on."""
        assert isinstance(message, Tokens)
        metrics, now = self.metrics, time.time()
        metrics.first_scheduled_time = metrics.first_scheduled_time or message.scheduled_time
        metrics.first_token_time = metrics.first_token_time or now
        metrics.last_token_time = now
        metrics.num_preemptions += message.num_preemptions
        if message.index == 0:
            self.num_cached = message.num_cached
        answer = self.answers[message.index]
        if message.prompt_logprobs is not None and self.prompt_logprobs is None:
            try:
                self.prompt_logprobs = [
                    None if packed is None else unpack_logprobs(packed, self._texts)
                    for packed in message.prompt_logprobs
                ]
            except BaseException as error:
                raise RequestFailedError(failure(error)) from error
        answer.add(message)

    def output(self) -> RequestOutput | None:
        """The output that is due now, by the request's output kind; None if none is."""
        kind, finished = self.params.output_kind, self.finished
        if not any(answer.is_due for answer in self.answers) or (kind is RequestOutputKind.FINAL_ONLY and not finished):
            return None
        if finished:
            self.metrics.finished_time = time.time()
        shown = self._best() if finished else self.answers
        is_delta = kind is RequestOutputKind.DELTA
        tells_prompt = self.prompt_logprobs is not None and not (is_delta and self._has_told_prompt)
        self._has_told_prompt = self._has_told_prompt or tells_prompt
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            encoder_prompt=self.prompt.encoder_text,
            encoder_prompt_token_ids=self.prompt.encoder_token_ids or None,
            prompt_logprobs=self._told_prompt() if tells_prompt else None,
            outputs=[answer.output(kind) for answer in shown if answer.is_due or not is_delta],
            finished=finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached,
        )

    def _told_prompt(self) -> list[TokenLogprobs | None] | FlatLogprobs | None:
        is_flat = self.params.flat_logprobs and self.prompt_logprobs is not None
        return FlatLogprobs.of(self.prompt_logprobs or ()) if is_flat else self.prompt_logprobs

    def settle(self, client: EngineClient, name: str) -> None:
        """Tell the engine, which knows the request by `name`, which sequences have ended here.

        Nobody may wait any more for a request that is finished.
        """
        ended = [answer for answer in self.answers if answer.ended_here]
        if ended and self.finished:
            client.abort(name)
        for answer in ended:
            answer.ended_here = False
            if not self.finished:
                client.finish(name, answer.index)

    def _best(self) -> list[Answer]:
        """The `n` answers to return: all, or of `best_of` those of the highest log-probability."""
        if self.params.num_sequences == self.params.n:
            return self.answers
        ranked = sorted(self.answers, key=lambda answer: -answer.cumulative_logprob)[: self.params.n]
        for index, answer in enumerate(ranked):
            answer.index = index
        return ranked


class PoolingProcessor:
    """Makes a pooling request's output, whose data is a numpy array of float32.

    Args:
        request_id: the request's.
        prompt: its prompt.
        params: what it asks for.
    """

    def __init__(self, request_id: str, prompt: CheckedPrompt, params: PoolingParams) -> None:
        self.request_id, self.prompt, self.params = request_id, prompt, params
        self.num_tokens = 0
        self._pooled: Pooled | None = None

    lengths: ClassVar[list[int]] = []
    """It has no sequences that grow."""

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return self._pooled is not None

    def add(self, message: Output) -> None:
        """Take the result."""
        assert isinstance(message, Pooled)
        self._pooled = message

    def output(self) -> PoolingRequestOutput[PoolingOutput] | None:
        """The output; None before the result is there."""
        if self._pooled is None:
            return None
        data = np.frombuffer(self._pooled.data, np.float32).reshape(self._pooled.shape)
        return PoolingRequestOutput(
            self.request_id, PoolingOutput(data), self.prompt.token_ids, num_cached_tokens=self._pooled.num_cached
        )

    def settle(self, client: EngineClient, name: str) -> None:
        """The engine knows itself when such a request ends."""


Processor = OutputProcessor | PoolingProcessor


def processor_of(
    request_id: str,
    prompt: CheckedPrompt,
    params: SamplingParams | PoolingParams,
    tokenizer: Tokenizer | None,
    shown: dict[int, str] | None = None,
) -> Processor:
    """What makes a request's outputs."""
    if isinstance(params, PoolingParams):
        return PoolingProcessor(request_id, prompt, params)
    return OutputProcessor(request_id, prompt, params, tokenizer, shown)


def unpack_logprobs(packed: PackedLogprobs, texts: TokenTexts | None) -> TokenLogprobs:
    """Log-probabilities of one place by token, with the tokens' texts if they are given."""
    if texts is None:
        return {token: Logprob(logprob, rank) for token, logprob, rank in packed}
    return {token: Logprob(logprob, rank, texts.own(token).text) for token, logprob, rank in packed}
