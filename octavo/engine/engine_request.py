"""Requests and their sequences, as the engine sees them: token ids, and how they end."""

from dataclasses import dataclass, field

from octavo.engine.messages import Tokens
from octavo.engine.sequence import Sequence
from octavo.outputs import PackedLogprobs
from octavo.params import PoolingParams, SamplingParams


@dataclass(eq=False)
class Completion:
    """One sequence of a generation request."""

    index: int
    sequence: Sequence
    params: SamplingParams
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    is_invalid: bool = False
    """Whether an error is of the request's own values."""
    has_message: bool = False
    """Whether there was a message of it."""

    def append(self, token_id: int, eos: frozenset[int], grammar_ended: bool = False) -> None:
        """Take the next token, and see whether the sequence is done."""
        self.token_ids.append(token_id)
        self.sequence.tokens.append(token_id)
        params = self.params
        stop_token = token_id in (params.stop_token_ids or [])
        ended = (token_id in eos and not params.ignore_eos) or stop_token
        ended = ended and len(self.token_ids) >= params.min_tokens
        if ended or grammar_ended:  # whatever ignore_eos and min_tokens say: nothing can follow
            self.finish_reason, self.stop_reason = "stop", token_id if stop_token else None
        elif len(self.token_ids) >= self.max_tokens:
            self.finish_reason = "length"


@dataclass(eq=False)
class GenerationRequest:
    """A prompt with SamplingParams."""

    request_id: str
    params: SamplingParams
    completions: list[Completion]
    prompt_logprobs: list[PackedLogprobs | None] | None = None
    """As far as they are computed; None where they are not asked for."""
    scheduled_time: float | None = None
    adapter_name: str | None = None

    @property
    def sequences(self) -> list[Sequence]:
        return [c.sequence for c in self.completions]

    @property
    def finished(self) -> bool:
        return all(c.finish_reason is not None for c in self.completions)

    def message(self, completion: Completion, token_ids: list[int], logprobs: list[PackedLogprobs]) -> Tokens:
        """What is new of one of its sequences."""
        is_first, completion.has_message = not completion.has_message, True
        return Tokens(
            self.request_id,
            completion.index,
            token_ids,
            logprobs if completion.params.logprobs is not None else None,
            completion.finish_reason,
            completion.stop_reason,
            completion.sequence.num_cached,
            self.prompt_logprobs if is_first and completion.index == 0 else None,
            completion.is_invalid,
            self.scheduled_time if is_first else None,
            0 if completion.finish_reason is None else completion.sequence.num_preemptions,
        )


@dataclass(eq=False)
class PoolingRequest:
    """A prompt whose hidden states become an embedding or scores."""

    request_id: str
    params: PoolingParams
    sequence: Sequence
    scheduled_time: float | None = None
    adapter_name: str | None = None

    @property
    def sequences(self) -> list[Sequence]:
        return [self.sequence]


@dataclass(eq=False)
class AdapterRequest:
    """An adapter that is to be loaded, without a prompt. Its sequence is never computed."""

    request_id: str
    sequence: Sequence
    adapter_name: str
    scheduled_time: float | None = None

    @property
    def sequences(self) -> list[Sequence]:
        return [self.sequence]


Request = GenerationRequest | PoolingRequest | AdapterRequest
