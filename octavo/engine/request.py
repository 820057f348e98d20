"""A request: its sequences, and the outputs made of them."""

import time
from dataclasses import dataclass, field

from octavo.engine.sequence import Sequence
from octavo.executor.step import Pooled
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput, TokenLogprobs
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams
from octavo.text.detokenizer import TextStream
from octavo.text.inputs import CheckedPrompt
from octavo.text.token_text import token_texts
from octavo.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Completion:
    """One sequence of a generation request, with its text."""

    index: int
    sequence: Sequence
    params: SamplingParams
    max_tokens: int
    stream: TextStream | None
    """Its text; None where none is asked for."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    is_invalid: bool = False
    """Whether an error is of the request's own values."""
    sent_tokens: int = 0
    sent_finish: bool = False
    """Whether an output has said how it ended."""

    def append(
        self, token_id: int, logprobs: TokenLogprobs | None, eos: frozenset[int], grammar_ended: bool = False
    ) -> None:
        """Take the next token, and see whether the sequence is done."""
        self.token_ids.append(token_id)
        self.sequence.tokens.append(token_id)
        if logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.append(logprobs)
            self.cumulative_logprob += logprobs[token_id].logprob
        params = self.params
        stop_token = token_id in (params.stop_token_ids or [])
        ended = (token_id in eos and not params.ignore_eos) or stop_token
        ended = ended and len(self.token_ids) >= params.min_tokens
        ended = ended or grammar_ended  # whatever ignore_eos and min_tokens say: nothing can follow
        if self.stream is not None and (not ended or params.include_stop_str_in_output):
            self.stream.add(token_id)
            if self.stream.stop is not None:
                self.finish_reason, self.stop_reason = "stop", self.stream.stop
        if self.finish_reason is None and ended:
            self.finish_reason, self.stop_reason = "stop", token_id if stop_token else None
        if self.finish_reason is None and len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"

    @property
    def is_due(self) -> bool:
        """Whether there are tokens, or an end (which may come without any), that no output has told yet."""
        return len(self.token_ids) > self.sent_tokens or (self.finish_reason is not None and not self.sent_finish)

    def output(self, kind: RequestOutputKind) -> CompletionOutput:
        """What a RequestOutput of this kind shows of the sequence."""
        delta, text = kind is RequestOutputKind.DELTA, ""
        if self.stream is not None:
            finished = self.finish_reason is not None
            text = self.stream.take(finished) if delta else self.stream.visible(finished)
        first_token = self.sent_tokens if delta else 0
        self.sent_tokens, self.sent_finish = len(self.token_ids), self.finish_reason is not None
        wants_logprobs = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self.token_ids[first_token:],
            cumulative_logprob=self.cumulative_logprob if wants_logprobs else None,
            logprobs=(self.logprobs or [])[first_token:] if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            is_invalid=self.is_invalid,
        )


@dataclass(eq=False)
class GenerationRequest:
    """A prompt with SamplingParams."""

    request_id: str
    checked: CheckedPrompt
    params: SamplingParams
    completions: list[Completion]
    metrics: RequestMetrics
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    sent: bool = False

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.checked.token_ids

    @property
    def sequences(self) -> list[Sequence]:
        return [c.sequence for c in self.completions]

    @property
    def finished(self) -> bool:
        return all(c.finish_reason is not None for c in self.completions)

    def output(self) -> RequestOutput | None:
        """The output that is due now, by the request's output kind; None if none is."""
        kind, finished = self.params.output_kind, self.finished
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if finished:
            self.metrics.finished_time = time.time()
            self.metrics.num_preemptions = sum(s.num_preemptions for s in self.sequences)
        shown = self._best() if finished else self.completions
        if kind is RequestOutputKind.DELTA:
            shown = [c for c in shown if c.is_due]
        first, self.sent = not self.sent, True
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.checked.text,
            prompt_token_ids=self.checked.token_ids,
            encoder_prompt=self.checked.encoder_text,
            encoder_prompt_token_ids=self.checked.encoder_token_ids or None,
            prompt_logprobs=self.prompt_logprobs if first or kind is not RequestOutputKind.DELTA else None,
            outputs=[c.output(kind) for c in shown],
            finished=finished,
            metrics=self.metrics,
            num_cached_tokens=self.completions[0].sequence.num_cached,
        )

    def _best(self) -> list[Completion]:
        """The `n` completions to return: all, or of `best_of` those of the highest log-probability."""
        if self.params.num_sequences == self.params.n:
            return self.completions
        ranked = sorted(self.completions, key=lambda c: -c.cumulative_logprob)[: self.params.n]
        for index, completion in enumerate(ranked):
            completion.index = index
        return ranked

    def decode_logprobs(self, tokenizer: Tokenizer, entries: TokenLogprobs) -> None:
        """Write each entry's token as text."""
        for token_id, entry in entries.items():
            if entry.decoded_token is None:
                entry.decoded_token = token_texts(tokenizer).own(token_id).text


@dataclass(eq=False)
class PoolingRequest:
    """A prompt whose hidden states become an embedding or scores."""

    request_id: str
    prompt_token_ids: list[int]
    params: PoolingParams
    sequence: Sequence
    metrics: RequestMetrics
    error: str | None = None
    pooled: Pooled | None = None

    @property
    def sequences(self) -> list[Sequence]:
        return [self.sequence]

    @property
    def finished(self) -> bool:
        return self.pooled is not None or self.error is not None


Request = GenerationRequest | PoolingRequest
