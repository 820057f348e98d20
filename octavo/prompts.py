"""What a prompt may be: text, token ids, or a dict that says which."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from octavo.errors import InvalidRequestError


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


def media_of_encoder(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """An ExplicitEncoderDecoderPrompt whose encoder hears or sees, as the decoder's prompt with these media.

    Any other prompt as it is. Raises InvalidRequestError for an encoder's prompt without media, or a decoder's that is
    none.
    """
    if "encoder_prompt" not in prompt:
        return prompt
    source, target = prompt["encoder_prompt"], prompt.get("decoder_prompt")
    if not isinstance(source, Mapping) or not source.get("multi_modal_data"):
        raise InvalidRequestError(
            "encoder_prompt: this model's encoder reads no text. Give a dict with multi_modal_data."
        )
    if isinstance(target, Mapping):
        joined = dict(target)
    elif isinstance(target, str):
        joined = {"prompt": target}
    elif isinstance(target, list):
        joined = {"prompt_token_ids": target}
    else:
        raise InvalidRequestError("decoder_prompt must say how the answer begins: a text, or token ids.")
    named = ("multi_modal_data", "mm_processor_kwargs", "media_io_kwargs", "multi_modal_uuids", "cache_salt")
    return {**joined, **{name: source[name] for name in named if source.get(name) is not None}}
