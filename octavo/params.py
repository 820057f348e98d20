"""What a request asks for: the fields of vLLM's SamplingParams, with its names, defaults and meaning."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from octavo.errors import InvalidRequestError, names_closest

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""

MAX_BAD_WORDS = 20_000
MAX_BAD_CHARACTERS = 500_000
"""What bad_words may hold: each is tokenized, twice."""

LogitsProcessor = Callable[..., Any]
"""`f(output_token_ids, logits)` or `f(prompt_token_ids, output_token_ids, logits)`, giving the logits `[vocab]`."""


class RequestOutputKind(Enum):
    """What each RequestOutput of a stream holds."""

    CUMULATIVE = 0
    """Everything so far, each time."""
    DELTA = 1
    """Only what is new."""
    FINAL_ONLY = 2
    """One output, at the end."""


def _reject(message: str) -> None:
    raise InvalidRequestError(message)


def _check_range(name: str, value: float | int, low: float, high: float | None, *, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (value > low if above else value >= low) or (high is not None and value > high):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        upper = f" and at most {high:g}" if high is not None else ""
        _reject(f"{name}={value!r} is out of range: it must be {bound}{upper}.")


@names_closest
@dataclass
class StructuredOutputsParams:
    """What an answer must follow: one of these. vLLM's GuidedDecodingParams is the same under its older name.

    Raises InvalidRequestError at construction unless exactly one is given.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema."""
    regex: str | None = None
    choice: list[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """In Lark's or GBNF's notation."""
    json_object: bool | None = None
    """Any JSON object."""

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self))
            _reject(f"structured_outputs needs exactly one of {names}; it has {', '.join(given) or 'none'}.")
        if self.json is not None and not isinstance(self.json, (str, dict)):
            _reject("structured_outputs: json must be a schema, as a text or a dict.")
        for name in ("regex", "grammar"):
            if (text := getattr(self, name)) is not None and (not isinstance(text, str) or not text):
                _reject(f"structured_outputs: {name} must be a text that is not empty.")
        if self.json_object is not None and not isinstance(self.json_object, bool):
            _reject("structured_outputs: json_object must be True.")
        if self.choice is None:
            return
        if not isinstance(self.choice, (list, tuple)) or any(not isinstance(c, str) or not c for c in self.choice):
            _reject("structured_outputs: choice must be a list of texts, none of them empty.")
        if not self.choice:
            _reject("structured_outputs: choice is an empty list; give at least one text.")

    def as_grammar(self) -> tuple[str, str]:
        """The kind of grammar and its text: a schema, and the list of a choice, are JSON.

        Raises InvalidRequestError for a schema that is not JSON and for text that is not Unicode.
        """
        kind, text = self._as_text()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            name = kind.replace("_", " ")
            raise InvalidRequestError(f"structured_outputs: this {name} holds half a character: {error}") from error
        return kind, text

    def _as_text(self) -> tuple[str, str]:
        if self.json is not None or self.json_object:
            schema = {"type": "object"} if self.json is None else self.json
            try:
                text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidRequestError(f"structured_outputs: the schema is not JSON: {error}") from error
            return "json_schema", text
        if self.choice is not None:
            return "choice", json.dumps(self.choice, ensure_ascii=False)
        return ("regex", self.regex) if self.regex is not None else ("grammar", str(self.grammar))


GuidedDecodingParams = StructuredOutputsParams


@names_closest
@dataclass
class SamplingParams:
    """How tokens are chosen and when a request ends.

    Raises InvalidRequestError (a ValueError) at construction for a value out of range, naming the field.
    """

    n: int = 1
    """Sequences to return for the prompt."""
    best_of: int | None = None
    """Sequences to generate, of which the `n` of the highest total log-probability are returned."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: all tokens."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are left out."""
    seed: int | None = None
    """The same seed gives the same text, whatever else runs."""
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    bad_words: list[str] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: as many as the model's length leaves."""
    min_tokens: int = 0
    logprobs: int | None = None
    """Log-probabilities of so many of the likeliest tokens a step, and of the chosen one (-1: the whole vocabulary)."""
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logits_processors: list[LogitsProcessor] | None = None
    truncate_prompt_tokens: int | None = None
    """Keep only the last so many tokens of the prompt (-1: as many as the model allows)."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    """Added to the logits of these tokens, between -100 and 100."""
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None
    """The older name of structured_outputs."""
    extra_args: dict[str, Any] | None = None
    skip_reading_prefix_cache: bool | None = None
    _stop_list: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._stop_list = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        self.stop = list(self._stop_list)
        self.stop_token_ids = list(self.stop_token_ids or [])
        self.bad_words = list(self.bad_words or [])
        if self.seed == -1:
            self.seed = None
        # vLLM's older spelling: True asks for one.
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1
        self.structured_outputs = self.structured_outputs or self.guided_decoding
        self.guided_decoding = None
        self._check()
        if self.logit_bias is not None:
            self.logit_bias = {int(k): min(100.0, max(-100.0, float(v))) for k, v in self.logit_bias.items()}
        if self.temperature < GREEDY_BELOW:
            if self.n > 1:
                _reject(f"n={self.n} with temperature=0: greedy sequences would all be the same; set n=1.")
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    def _check(self) -> None:
        _check_range("n", self.n, 1, None)
        if self.best_of is not None and self.best_of < self.n:
            _reject(f"best_of={self.best_of} must be at least n={self.n}.")
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_range("repetition_penalty", self.repetition_penalty, 0, None, above=True)
        _check_range("temperature", self.temperature, 0, None)
        _check_range("top_p", self.top_p, 0, 1, above=True)
        if not isinstance(self.top_k, int) or self.top_k < -1:
            _reject(f"top_k={self.top_k!r} is out of range: give 0 or -1 for all tokens, or at least 1.")
        _check_range("min_p", self.min_p, 0, 1)
        if self.seed is not None and not isinstance(self.seed, int):
            _reject(f"seed={self.seed!r} must be a whole number or None.")
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, None)
        _check_range("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _reject(f"min_tokens={self.min_tokens} must be at most max_tokens={self.max_tokens}.")
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_range(name, value, -1, None)
        if (self.truncate_prompt_tokens is not None and (self.truncate_prompt_tokens or 0) < -1) or (
            self.truncate_prompt_tokens == 0
        ):
            _reject(f"truncate_prompt_tokens={self.truncate_prompt_tokens} must be -1 or at least 1.")
        if any(not isinstance(s, str) or not s for s in self._stop_list):
            _reject(f"stop={self.stop!r} holds an empty string or something that is not a string.")
        if self._stop_list and not self.detokenize:
            _reject("stop strings need text: set detokenize=True, or use stop_token_ids.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            _reject("allowed_token_ids is empty: no token could ever be chosen. Leave it out to allow all.")
        self._check_bad_words()
        if any(not callable(p) for p in self.logits_processors or []):
            _reject("logits_processors must be callables f(output_token_ids, logits).")

    def _check_bad_words(self) -> None:
        words = self.bad_words or []
        wrong = next((w for w in words if not isinstance(w, str) or not w.strip()), None)
        if wrong is not None:
            _reject(f"bad_words holds {wrong!r:.40}: an empty string or something that is not a string.")
        size = sum(len(w) for w in words)
        if len(words) > MAX_BAD_WORDS or size > MAX_BAD_CHARACTERS:
            _reject(
                f"bad_words has {len(words)} words of {size} characters in all; there may be {MAX_BAD_WORDS} of "
                f"{MAX_BAD_CHARACTERS} characters."
            )

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def num_sequences(self) -> int:
        """Sequences that are generated: `best_of` or `n`."""
        return self.best_of or self.n

    @classmethod
    def from_optional(cls, **values: Any) -> "SamplingParams":
        """SamplingParams from keywords of which None means the default. Raises for unknown ones, naming the closest."""
        return cls(**{k: v for k, v in values.items() if v is not None})

    def clone(self) -> "SamplingParams":
        """A copy of its own; logits processors are shared, as they may hold models."""
        twin = copy.copy(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (list, dict)):
                setattr(twin, f.name, value.copy())
        return twin


def recommended_sampling(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling values that a model's generation_config.json recommends, for requests that do not say their own."""
    wanted = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
    return {k: v for k in wanted if (v := generation_config.get(k)) is not None}


@names_closest
@dataclass
class BeamSearchParams:
    """Beam search: the `beam_width` sequences of the highest log-probability over length ** length_penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _check_range("beam_width", self.beam_width, 1, None)
        _check_range("max_tokens", self.max_tokens, 1, None)
        _check_range("temperature", self.temperature, 0, None)


@names_closest
@dataclass
class PoolingParams:
    """What an embedding, score or reward request asks for."""

    dimensions: int | None = None
    """Keep only the first so many values of an embedding (Matryoshka models)."""
    normalize: bool | None = None
    """Scale the embedding to length one; None: as the engine was told."""
    softmax: bool | None = None
    """Turn scores into probabilities; None: as the engine was told."""
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dimensions is not None:
            _check_range("dimensions", self.dimensions, 1, None)

    def clone(self) -> "PoolingParams":
        return copy.copy(self)
