"""A prompt that the model can take, and what a model with an encoder takes."""

from dataclasses import dataclass, field

from octavo.features import ENCODER, Feature, Positions
from octavo.lora import AdapterRef


@dataclass
class CheckedPrompt:
    """A prompt that the model can take."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""
    encoder_text: str | None = None
    features: list[Feature] = field(default_factory=list)
    """Inputs that are not tokens of the prompt: what the model's encoder reads, pictures, films, sounds."""
    positions: Positions | None = None
    both_ways: list[tuple[int, int]] = field(default_factory=list)
    """First token and end of spans in which every token sees all of the span, and not only what is before it."""
    adapter: AdapterRef | None = None
    """Which adapter the model answers it with."""
    token_types: list[int] = field(default_factory=list)
    """Which of a pair of texts each token is of, 0 or 1; empty where all are of the first."""
    unpooled: int = 0
    """How many of its first tokens are a prompt that is not pooled."""

    @property
    def media(self) -> list[Feature]:
        """Its pictures, films and sounds."""
        return [feature for feature in self.features if feature.kind != ENCODER]

    @property
    def encoder_token_ids(self) -> list[int]:
        """What the model's encoder reads; empty where it has none."""
        for feature in self.features:
            if feature.kind == ENCODER:
                return list(feature.data)
        return []


@dataclass(frozen=True)
class EncoderInput:
    """What a model with an encoder takes.

    Args:
        max_tokens: longest input of the encoder.
        start_token_id: begins every answer, unless the decoder's prompt is given as token ids.
    """

    max_tokens: int
    start_token_id: int | None
