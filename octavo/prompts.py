"""What a prompt may be: text, token ids, or a dict that says which."""

from typing import Any, NotRequired, TypedDict


class TextPrompt(TypedDict):
    """A prompt as text, tokenized by the engine."""

    prompt: str
    cache_salt: NotRequired[str]
    add_special_tokens: NotRequired[bool]
    """Whether the tokenizer writes those that begin and end a text (it does); False for what a chat template wrote."""
    multi_modal_data: NotRequired[dict[str, Any]]
    """Pictures, films and sounds under "image", "video" and "audio": one or several of each."""
    mm_processor_kwargs: NotRequired[dict[str, Any] | None]
    """Settings of the model's media processor for this prompt."""
    media_io_kwargs: NotRequired[dict[str, Any] | None]
    """How media are read, by kind: {"video": {"num_frames": 16, "fps": 2}}."""


class TokensPrompt(TypedDict):
    """A prompt as token ids, used as they are."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[dict[str, Any]]
    mm_processor_kwargs: NotRequired[dict[str, Any] | None]


class ExplicitEncoderDecoderPrompt(TypedDict):
    """For models with an encoder: what it reads, and how the answer begins (the model's own way if None)."""

    encoder_prompt: str | list[int] | TextPrompt | TokensPrompt
    decoder_prompt: str | list[int] | TextPrompt | TokensPrompt | None


Prompt = str | list[int] | TextPrompt | TokensPrompt | ExplicitEncoderDecoderPrompt | dict[str, Any]
