"""What comes back: the output classes that vLLM made common."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar


@dataclass(slots=True)
class Logprob:
    """One token's log-probability, before temperature, penalties and filters."""

    logprob: float
    rank: int | None = None
    """1 for the likeliest token."""
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]
PackedLogprobs = list[tuple[int, float, int]]
"""Token, log-probability and rank of each entry of a TokenLogprobs: the chosen token's first."""


@dataclass
class CompletionOutput:
    """One generated sequence."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    """stop, length, abort or error; None while it runs."""
    stop_reason: int | str | None = None
    """The stop string or stop token that ended it; None for the end-of-sequence token."""
    lora_request: Any = None
    is_invalid: bool = False
    """Whether what ended it as an error (told in `stop_reason`) is in the request's own values, such as its grammar."""

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Times of a request, in seconds of `time.time()`."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0

    @property
    def time_in_queue(self) -> float | None:
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time


@dataclass
class RequestOutput:
    """A generation request's answer, or its state so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None
    """Prompt tokens whose keys and values came from the prefix cache."""


@dataclass
class PoolingOutput:
    """A pooled answer: `data` is a tensor, `[width]` or `[tokens, width]`."""

    data: Any


@dataclass
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass
class ClassificationOutput:
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass
class ScoringOutput:
    score: float


T = TypeVar("T")


@dataclass
class PoolingRequestOutput(Generic[T]):
    """A pooling request's answer."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """An embedding request's answer."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """A classification request's answer."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """The score of a pair of texts."""


@dataclass
class BeamSearchSequence:
    """One beam: its tokens (prompt and answer) and their total log-probability."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """The best beams of a prompt, best first."""

    sequences: list[BeamSearchSequence]
