"""What comes back: the output classes that vLLM made common."""

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload


@dataclass(slots=True)
class Logprob:
    """One token's log-probability, before temperature, penalties and filters."""

    logprob: float
    rank: int | None = None
    """1 for the likeliest token."""
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]


@dataclass
class FlatLogprobs(MutableSequence[TokenLogprobs | None]):
    """Log-probabilities of many places in a few plain lists, read as a list of TokenLogprobs is.

    Place i has the entries `start_indices[i]` up to `end_indices[i]` of the other lists. None is kept as a place
    without entries. Places may be added at the end only.
    """

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ranks: list[int | None] = field(default_factory=list)
    decoded_tokens: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start_indices)

    @overload
    def __getitem__(self, place: int) -> TokenLogprobs: ...

    @overload
    def __getitem__(self, place: slice) -> "FlatLogprobs": ...

    def __getitem__(self, place: int | slice) -> "TokenLogprobs | FlatLogprobs":
        if isinstance(place, slice):
            return FlatLogprobs.of(self[i] for i in range(*place.indices(len(self))))
        entries = range(self.start_indices[place], self.end_indices[place])
        return {self.token_ids[i]: Logprob(self.logprobs[i], self.ranks[i], self.decoded_tokens[i]) for i in entries}

    @classmethod
    def of(cls, places: Iterable[TokenLogprobs | None]) -> "FlatLogprobs":
        """One of these places."""
        made = cls()
        made.extend(places)
        return made

    def append(self, value: TokenLogprobs | None) -> None:
        """Add a place at the end."""
        self.start_indices.append(len(self.token_ids))
        for token_id, entry in (value or {}).items():
            self.token_ids.append(token_id)
            self.logprobs.append(entry.logprob)
            self.ranks.append(entry.rank)
            self.decoded_tokens.append(entry.decoded_token)
        self.end_indices.append(len(self.token_ids))

    def insert(self, index: int, value: TokenLogprobs | None) -> None:
        if index < len(self):
            raise TypeError("places of FlatLogprobs are added at the end; list(it) can be changed anywhere.")
        self.append(value)

    def copy(self) -> "FlatLogprobs":
        """One that grows by itself."""
        return FlatLogprobs(**{name: list(values) for name, values in vars(self).items()})

    def __setitem__(self, place: Any, value: Any) -> None:
        raise TypeError("places of FlatLogprobs cannot be changed; list(it) can be.")

    def __delitem__(self, place: Any) -> None:
        raise TypeError("places of FlatLogprobs cannot be taken out; list(it) can be changed.")


PackedLogprobs = list[tuple[int, float, int]]
"""Token, log-probability and rank of each entry of a TokenLogprobs: the chosen token's first."""


@dataclass
class CompletionOutput:
    """One generated sequence."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | FlatLogprobs | None = None
    """Of each token; a FlatLogprobs with flat_logprobs."""
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
    prompt_logprobs: list[TokenLogprobs | None] | FlatLogprobs | None
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
