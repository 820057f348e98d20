"""What is asked of a model that writes down what is said, and what it gives: plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import InvalidRequestError, names_closest, shorten

TASKS = ("transcribe", "translate")
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Which a window is tried at, one after the other, until what is written seems sound (Radford et al. 2023, 4.5)."""


@dataclass
class TranscriptRule:
    """Which tokens may come next in a transcript. Log-probabilities are of what it leaves.

    Timestamps come in pairs, but for one at the end; they do not decrease, and none is alone a segment. Where all of
    them together are likelier than any other token, one of them comes (Radford et al. 2023, section 2.3).
    """

    suppress: list[int] = field(default_factory=list)
    """Tokens that never come."""
    suppress_first: list[int] = field(default_factory=list)
    """Those that do not come first."""
    end: int = 0
    """<|endoftext|>: ids below it are text."""
    timestamps: int | None = None
    """The first timestamp's id, behind which are the others; None for a transcript without them."""
    no_timestamps: int | None = None
    """<|notimestamps|>, which then does not come."""
    max_first: int | None = None
    """How many timestamps after the first one may be the transcript's first; None for any."""

    def token_ids(self) -> list[int]:
        """All that it names."""
        named = [self.end, self.timestamps, self.no_timestamps]
        return [*self.suppress, *self.suppress_first, *(i for i in named if i is not None)]


@names_closest
@dataclass
class TranscriptionParams:
    """How a sound is transcribed. The defaults are openai-whisper's.

    Raises InvalidRequestError at construction for a value out of range, naming the field.
    """

    language: str | None = None
    """A code such as en, or a name; None to have the model find out."""
    task: str = "transcribe"
    """transcribe, or translate (into English)."""
    prompt: str | None = None
    """Text that could stand before what is said: spellings, names, style."""
    temperature: float | Sequence[float] = TEMPERATURES
    """One for all windows, or several that are tried until a window's text seems sound."""
    timestamps: bool = True
    """Whether the model tells times. Without them a window always goes on where the one before it ends."""
    condition_on_previous_text: bool = True
    """Whether a window sees the text of those before it."""
    compression_ratio_threshold: float | None = 2.4
    """Text that gzip makes smaller by more repeats itself: the next temperature is tried."""
    logprob_threshold: float | None = -1.0
    """The same for text whose tokens have a mean log-probability below this."""
    no_speech_threshold: float | None = 0.6
    """Where silence is more probable than this, and the text is below logprob_threshold, there is none."""
    max_tokens: int | None = None
    """Most tokens of a window's text; None for as many as fit."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InvalidRequestError(f"task={self.task!r:.40} is not known; it is transcribe or translate.")
        for name in ("language", "prompt"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequestError(f"{name} must be a text, not {type(value).__name__}.")
        given = self.temperature
        each = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not 1 <= len(each) <= 16:
            raise InvalidRequestError(f"temperature has {len(each)} values; give 1 to 16.")
        for value in each:
            if not is_number(value) or not 0 <= value <= 2:
                raise InvalidRequestError(f"temperature={shorten(value)} is out of range: it must be from 0 to 2.")
        self.temperature = tuple(map(float, each))
        for name in ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise InvalidRequestError(f"{name}={shorten(value)} must be a number, or None for no threshold.")

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those that are tried in turn."""
        return tuple(self.temperature) if isinstance(self.temperature, Sequence) else (self.temperature,)


def is_number(value: object) -> bool:
    """Whether a value is a number, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


@dataclass
class TranscriptSegment:
    """A piece of a transcript, with its times in seconds."""

    id: int
    seek: int
    """Where its window begins, in frames of 10 ms."""
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    """Mean log-probability of the tokens of its window."""
    compression_ratio: float
    no_speech_prob: float


@dataclass
class Transcript:
    """What is said in a sound."""

    text: str
    language: str
    """Its code."""
    task: str
    duration: float
    """Seconds of the sound."""
    segments: list[TranscriptSegment] = field(default_factory=list)
    num_prompt_tokens: int = 0
    """Tokens that the model has read, of all windows and tries."""
    num_generated_tokens: int = 0
    """Tokens that it has written."""

    def usage(self) -> dict[str, Any]:
        """Its tokens, as OpenAI's API tells them."""
        read, written = self.num_prompt_tokens, self.num_generated_tokens
        return {"type": "tokens", "input_tokens": read, "output_tokens": written, "total_tokens": read + written}
