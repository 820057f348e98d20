"""What a request asks for: the fields of vLLM's SamplingParams, with its names, defaults and meaning."""

import copy
import functools
import json
import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from octavo.errors import ConfigError, InvalidRequestError, names_closest
from octavo.option_types import check_types, is_finite, wrong_type
from octavo.transcripts import TranscriptRule

SIDES = ("left", "right")
"""At which end of a prompt what is too much is taken away."""

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""

MAX_BAD_WORDS = 20_000
MAX_BAD_CHARACTERS = 500_000
"""What bad_words may hold: each is tokenized, twice."""

LogitsProcessor = Callable[..., Any]
"""`f(output_token_ids, logits)` or `f(prompt_token_ids, output_token_ids, logits)`, giving the logits `[vocab]`."""


def without_none(annotation: Any) -> Any:
    """`T` of `T | None`; any other type as it is."""
    if not isinstance(annotation, types.UnionType):
        return annotation
    kinds = [kind for kind in annotation.__args__ if kind is not types.NoneType]
    return functools.reduce(operator.or_, kinds)


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


def _in_range(value: Any, kind: type[int | float], low: float | None, above: float | None, high: float | None) -> bool:
    return (
        isinstance(value, (int, kind))
        and not isinstance(value, bool)
        and (kind is int or is_finite(value))
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
    )


def _check_range(
    name: str,
    value: Any,
    kind: type[int | float],
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> None:
    if not _in_range(value, kind, low, above, high):
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            _reject(f"{name}={value!r} must be a {'whole number' if kind is int else 'number'}.")
        if kind is float and not is_finite(value):
            _reject(f"{name}={value!r:.60} is out of range: it must be finite.")
        _reject(f"{name}={value!r} is out of range: it must be {range_text(low, above, high)}.")


def range_text(low: float | None, above: float | None, high: float | None) -> str:
    """What a number must be; nothing where it may be any."""
    bounds = (("above", above), ("at least", low), ("at most", high))
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def _check_kept(tokens: int | None) -> None:
    if tokens == 0:
        _reject("truncate_prompt_tokens=0 must be -1 or at least 1.")


def _check_side(side: Any) -> None:
    if side is not None and side not in SIDES:
        _reject(f"truncation_side={side!r:.60} must be left or right.")


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
    structural_tag: str | dict[str, Any] | None = None
    """Text in which what stands between certain marks follows a schema, in xgrammar's notation."""
    preamble: str | None = None
    """What comes before it, and is no part of it, such as a thought: a grammar in Lark's notation, of which the answer
    itself is `@answer`. It belongs to whoever knows the model's formats, and is no way of saying what to follow."""

    def __post_init__(self) -> None:
        known = [f.name for f in fields(self) if f.name != "preamble"]
        given = [name for name in known if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(known)
            _reject(f"structured_outputs needs exactly one of {names}; it has {', '.join(given) or 'none'}.")
        for name in ("json", "structural_tag"):
            if (value := getattr(self, name)) is not None and not isinstance(value, (str, dict)):
                what = "a schema" if name == "json" else "a structural tag"
                _reject(f"structured_outputs: {name} must be {what}, as a text or a dict.")
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
            raise InvalidRequestError(f"structured_outputs: this {name} is not valid Unicode: {error}") from error
        return (kind, text) if self.preamble is None else ("answer", json.dumps([self.preamble, kind, text]))

    def _as_text(self) -> tuple[str, str]:
        if self.structural_tag is not None:
            return "structural_tag", _as_json(self.structural_tag, "structural tag")
        if self.json is not None or self.json_object:
            return "json_schema", _as_json({"type": "object"} if self.json is None else self.json, "schema")
        if self.choice is not None:
            return "choice", json.dumps(self.choice, ensure_ascii=False)
        return ("regex", self.regex) if self.regex is not None else ("grammar", str(self.grammar))


GuidedDecodingParams = StructuredOutputsParams


def _as_json(value: str | dict[str, Any], what: str) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"structured_outputs: the {what} is not JSON: {error}") from error


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
                _reject(f"n={self.n} with temperature=0: greedy sequences would all be the same; set n=1.")
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
                _reject(wrong)
        if not isinstance(self.logits_processors, (list, tuple, type(None))):
            _reject("logits_processors must be a list of callables f(output_token_ids, logits).")
        if not isinstance(self.logit_bias, (Mapping, type(None))):
            _reject(f"logit_bias={self.logit_bias!r:.60} must be a dict from token ids to numbers.")
        for token, bias in (self.logit_bias or {}).items():
            is_token = str(token).strip().isdecimal() and not isinstance(token, bool)
            is_bias = isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not is_token or not is_bias or not (is_finite(bias) or bias in (math.inf, -math.inf)):
                _reject(f"logit_bias holds {token!r:.40}: {bias!r:.40}; it must be a token id and a number.")

    def _check(self) -> None:
        for f, kind in _NUMBERS:
            if (value := getattr(self, f.name)) is not None or f.type is kind:
                _check_range(f.name, value, kind, f.metadata["low"], f.metadata["above"], f.metadata["high"])
        if self.best_of is not None and self.best_of < self.n:
            _reject(f"best_of={self.best_of} must be at least n={self.n}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _reject(f"min_tokens={self.min_tokens} must be at most max_tokens={self.max_tokens}.")
        _check_kept(self.truncate_prompt_tokens)
        _check_side(self.truncation_side)
        if any(not isinstance(s, str) or not s for s in self._stop_list):
            _reject(f"stop={self.stop!r} holds an empty string or something that is not a string.")
        if self._stop_list and not self.detokenize:
            _reject("stop strings need text: set detokenize=True, or use stop_token_ids.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            _reject("allowed_token_ids is empty: no token could ever be chosen. Leave it out to allow all.")
        self._check_bad_words()
        if self.transcript is not None and not isinstance(self.transcript, TranscriptRule):
            _reject(f"transcript is a TranscriptRule, not {type(self.transcript).__name__}.")
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
        and _in_range(value, kind, f.metadata["low"], f.metadata["above"], f.metadata["high"])
    }


def check_recommended(values: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError for a default sampling value that is out of range, which the option `name` gives."""
    for f, kind in _NUMBERS:
        key, meta = f.metadata["recommended"], f.metadata
        value = values.get(key)
        if value is None or _in_range(value, kind, meta["low"], meta["above"], meta["high"]):
            continue
        try:
            _check_range(key, value, kind, meta["low"], meta["above"], meta["high"])
        except InvalidRequestError as error:
            raise ConfigError(f"{name}: {error}") from error


@names_closest
@dataclass
class BeamSearchParams:
    """Beam search: the `beam_width` sequences of the highest log-probability over length ** length_penalty.

    The length is that of the answer, with its end-of-sequence token. With `allowed_token_ids` beams are made of these
    tokens alone, whose log-probabilities stay as the model has them.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    watermarking: bool | None = None
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        check_types(self, InvalidRequestError)
        if self.structured_outputs is not None:
            _reject("beam search follows no structured_outputs; use generate with n and best_of.")
        if self.watermarking:
            _reject("watermarking=True is not available: answers carry no watermark. Leave it out.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            _reject("allowed_token_ids is empty: no token could ever be chosen. Leave it out to allow all.")
        _check_range("beam_width", self.beam_width, int, 1)
        _check_range("max_tokens", self.max_tokens, int, 1)
        _check_range("temperature", self.temperature, float, 0)


POOLING_TASKS = ("embed", "classify", "token_embed", "token_classify", "embed&token_classify")
REMOVED_TASKS = {"score": "classify", "encode": "token_embed or token_classify"}
"""Tasks that vLLM once had, and what took their place."""


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
    """Keep only so many tokens of a text, the first (-1: as many as the model allows)."""
    prompt_name: str | None = None
    """Which of the model's own prompts stands before a text that is embedded; None for its default."""
    task: str | None = None
    """One of POOLING_TASKS: embed, token_embed (a vector a token), token_classify (of an embedder: a weight a token),
    or both embed&token_classify, one after the other; None for what the engine does."""
    use_activation: bool | None = None
    """vLLM's name of `normalize` for embeddings and of `softmax` for scores, which go before it: False gives both as
    the model computes them; True gives embeddings of length one, and scores as the model's files say."""
    truncation_side: str | None = None
    """At which end a text is cut: left keeps the last tokens. None cuts the right, and keeps special tokens."""

    def __post_init__(self) -> None:
        _check_side(self.truncation_side)
        if self.dimensions is not None:
            _check_range("dimensions", self.dimensions, int, 1)
        if isinstance(self.task, str) and self.task in REMOVED_TASKS:
            raise InvalidRequestError(f"task={self.task!r} is no task any more; use {REMOVED_TASKS[self.task]}.")
        if self.task is not None and self.task not in POOLING_TASKS:
            raise InvalidRequestError(
                f"task={str(self.task)[:60]!r} is unknown; it is one of {', '.join(POOLING_TASKS)}."
            )
        if not isinstance(self.prompt_name, str | None):
            raise InvalidRequestError(f"prompt_name must be a text, not {type(self.prompt_name).__name__}.")
        check_types(self, InvalidRequestError)
        _check_kept(self.truncate_prompt_tokens)

    def clone(self) -> "PoolingParams":
        return copy.copy(self)
