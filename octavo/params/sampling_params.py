"""What a request for text asks for: the fields of vLLM's SamplingParams, with its names, defaults and meaning."""

import copy
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from octavo.errors import ConfigError, InvalidRequestError, names_closest
from octavo.option_types import is_finite, wrong_type
from octavo.params.checks import SIDES, check_kept, check_range, check_side, in_range, reject
from octavo.params.structured_params import StructuredOutputsParams
from octavo.transcripts import TranscriptRule

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


def sampling_option(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    http: bool = True,
    flag: bool = False,
    engine: bool = True,
    recommended: str | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of SamplingParams, from which its check, HTTP field, command-line flag and default are made.

    Args:
        default: its value if it is not given.
        text: its help.
        low: its least value.
        above: what its value must be above, instead.
        high: its greatest value.
        http: whether requests over HTTP have it, under its name.
        flag: whether commands have it as a flag.
        engine: whether the engine must know it; not what is about text alone.
        recommended: its key in a model's generation_config.json, whose value is the default for that model.
        choices: the only texts that it may be.
    """
    return field(
        default=default,
        metadata={
            "help": text,
            "choices": choices,
            "low": low,
            "above": above,
            "high": high,
            "http": http,
            "flag": flag,
            "engine": engine,
            "recommended": recommended,
        },
    )


@names_closest
@dataclass
class SamplingParams:
    """How tokens are chosen and when a request ends.

    Raises InvalidRequestError (a ValueError) at construction for a value out of range, naming the field.
    """

    n: int = sampling_option(1, "answers to the prompt (needs a temperature)", low=1, flag=True)
    best_of: int | None = sampling_option(
        None,
        "answers to generate, of which the n of the highest total log-probability are returned",
        low=1,
        http=False,
    )
    presence_penalty: float = sampling_option(
        0.0, "taken off the logits of tokens that were generated already", low=-2, high=2, flag=True
    )
    frequency_penalty: float = sampling_option(0.0, "the same, times how often", low=-2, high=2, flag=True)
    repetition_penalty: float = sampling_option(
        1.0,
        "above 1, tokens that were there already become less likely",
        above=0,
        flag=True,
        recommended="repetition_penalty",
    )
    temperature: float = sampling_option(
        1.0, "randomness; 0 always takes the likeliest token", low=0, flag=True, recommended="temperature"
    )
    top_p: float = sampling_option(
        1.0,
        "draw only from the likeliest tokens that make up this share",
        above=0,
        high=1,
        flag=True,
        recommended="top_p",
    )
    top_k: int = sampling_option(
        0, "draw only from so many of the likeliest tokens (0 or -1: all)", low=-1, flag=True, recommended="top_k"
    )
    min_p: float = sampling_option(
        0.0,
        "leave out tokens less likely than this share of the likeliest",
        low=0,
        high=1,
        flag=True,
        recommended="min_p",
    )
    seed: int | None = sampling_option(None, "the same seed gives the same text, whatever else runs")
    stop: str | list[str] | None = sampling_option(None, "text that ends the answer", flag=True, engine=False)
    stop_token_ids: list[int] | None = sampling_option(None, "tokens that end the answer")
    include_stop_str_in_output: bool = sampling_option(False, "keep what ended the answer in its text", engine=False)
    bad_words: list[str] | None = sampling_option(None, "texts that may not come")
    ignore_eos: bool = sampling_option(False, "go on after the end-of-sequence token")
    max_tokens: int | None = sampling_option(
        16,
        "most tokens of the answer; None for as many as fit",
        low=1,
        flag=True,
        recommended="max_new_tokens",
    )
    min_tokens: int = sampling_option(0, "fewest tokens of the answer", low=0, flag=True)
    logprobs: int | None = sampling_option(
        None,
        "log-probabilities of so many of the likeliest tokens a step, and of the chosen one (-1: all tokens)",
        low=-1,
        http=False,
    )
    prompt_logprobs: int | None = sampling_option(None, "the same, of the prompt's tokens", low=-1)
    flat_logprobs: bool = sampling_option(
        False, "give log-probabilities as FlatLogprobs, a few plain lists", http=False, engine=False
    )
    detokenize: bool = sampling_option(True, "whether answers have text", http=False, engine=False)
    skip_special_tokens: bool = sampling_option(True, "leave special tokens out of the text", engine=False)
    spaces_between_special_tokens: bool = sampling_option(True, "write spaces between special tokens", engine=False)
    logits_processors: list[LogitsProcessor] | None = sampling_option(
        None, "functions that change a step's logits", http=False
    )
    truncate_prompt_tokens: int | None = sampling_option(
        None, "keep only so many tokens of the prompt, the last (-1: as many as the model allows)", low=-1, engine=False
    )
    truncation_side: str | None = sampling_option(
        None,
        "at which end the prompt is cut: right keeps its first tokens; None cuts the left, and keeps special tokens",
        engine=False,
        choices=SIDES,
    )
    output_kind: RequestOutputKind = sampling_option(
        RequestOutputKind.CUMULATIVE, "what the outputs of a stream hold", http=False, engine=False
    )
    logit_bias: dict[int, float] | None = sampling_option(
        None, "added to the logits of these tokens, between -100 and 100"
    )
    allowed_token_ids: list[int] | None = sampling_option(None, "the only tokens that may come")
    structured_outputs: StructuredOutputsParams | None = sampling_option(
        None, "what the answer must follow", http=False
    )
    guided_decoding: StructuredOutputsParams | None = sampling_option(
        None, "the older name of structured_outputs", http=False
    )
    transcript: TranscriptRule | None = sampling_option(
        None, "the rule of a transcript's tokens; log-probabilities are of what it leaves", http=False
    )
    extra_args: dict[str, Any] | None = sampling_option(
        None, "values for the engine's own logits_processors, which read them", http=False
    )
    skip_reading_prefix_cache: bool | None = sampling_option(
        None, "compute the whole prompt, whatever the prefix cache has", http=False
    )
    _stop_list: list[str] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_types()
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
                reject(f"n={self.n} with temperature=0: greedy sequences would all be the same; set n=1.")
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    def _check_types(self) -> None:
        """Types of all but numbers, which have their own check. None stands for the default."""
        numbers = {f.name for f, _ in _NUMBERS}
        for name in ("stop_token_ids", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
                setattr(self, name, [operator.index(one) if hasattr(one, "__index__") else one for one in value])
        for f in fields(self):
            if not f.init or f.name in numbers or f.name in ("logit_bias", "logits_processors"):
                continue
            if getattr(self, f.name) is None and f.default is not None:
                setattr(self, f.name, f.default)
            if (wrong := wrong_type(self, f.name)) is not None:
                reject(wrong)
        if not isinstance(self.logits_processors, (list, tuple, type(None))):
            reject("logits_processors must be a list of callables f(output_token_ids, logits).")
        if not isinstance(self.logit_bias, (Mapping, type(None))):
            reject(f"logit_bias={self.logit_bias!r:.60} must be a dict from token ids to numbers.")
        for token, bias in (self.logit_bias or {}).items():
            is_token = str(token).strip().isdecimal() and not isinstance(token, bool)
            is_bias = isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not is_token or not is_bias or not (is_finite(bias) or bias in (math.inf, -math.inf)):
                reject(f"logit_bias holds {token!r:.40}: {bias!r:.40}; it must be a token id and a number.")

    def _check(self) -> None:
        for f, kind in _NUMBERS:
            if (value := getattr(self, f.name)) is not None or f.type is kind:
                check_range(f.name, value, kind, f.metadata["low"], f.metadata["above"], f.metadata["high"])
        if self.best_of is not None and self.best_of < self.n:
            reject(f"best_of={self.best_of} must be at least n={self.n}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            reject(f"min_tokens={self.min_tokens} must be at most max_tokens={self.max_tokens}.")
        check_kept(self.truncate_prompt_tokens)
        check_side(self.truncation_side)
        if any(not isinstance(s, str) or not s for s in self._stop_list):
            reject(f"stop={self.stop!r} holds an empty string or something that is not a string.")
        if self._stop_list and not self.detokenize:
            reject("stop strings need text: set detokenize=True, or use stop_token_ids.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            reject("allowed_token_ids is empty: no token could ever be chosen. Leave it out to allow all.")
        self._check_bad_words()
        if self.transcript is not None and not isinstance(self.transcript, TranscriptRule):
            reject(f"transcript is a TranscriptRule, not {type(self.transcript).__name__}.")
        if any(not callable(p) for p in self.logits_processors or []):
            reject("logits_processors must be callables f(output_token_ids, logits).")

    def _check_bad_words(self) -> None:
        words = self.bad_words or []
        wrong = next((w for w in words if not isinstance(w, str) or not w.strip()), None)
        if wrong is not None:
            reject(f"bad_words holds {wrong!r:.40}: an empty string or something that is not a string.")
        size = sum(len(w) for w in words)
        if len(words) > MAX_BAD_WORDS or size > MAX_BAD_CHARACTERS:
            reject(
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


_NUMBERS = [(f, kind) for f in fields(SamplingParams) for kind in (int, float) if f.type in (kind, kind | None)]
"""The sampling options that are numbers, and of which kind."""


GENERATION_KEYS = {f.metadata["recommended"] for f, _ in _NUMBERS if f.metadata["recommended"]} | {"eos_token_id"}
"""What is read of a generation_config.json."""


def recommended_sampling(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling values that a model's generation_config.json recommends, for requests that do not say their own."""
    return {
        f.name: value
        for f, kind in _NUMBERS
        if (value := generation_config.get(f.metadata["recommended"])) is not None
        and in_range(value, kind, f.metadata["low"], f.metadata["above"], f.metadata["high"])
    }


def check_recommended(values: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for a default sampling value that is out of range, which the option `name` gives."""
    for f, kind in _NUMBERS:
        key, meta = f.metadata["recommended"], f.metadata
        value = values.get(key)
        if value is None or in_range(value, kind, meta["low"], meta["above"], meta["high"]):
            continue
        try:
            check_range(key, value, kind, meta["low"], meta["above"], meta["high"])
        except InvalidRequestError as error:
            raise ConfigError(f"{name}: {error}") from error
