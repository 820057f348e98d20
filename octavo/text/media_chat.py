"""Chat messages with media to a prompt: the media taken out and fetched, their places written by the template."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.media.content import MediaPart, fetch_media, take_media
from octavo.media.fetch import MediaFetcher
from octavo.media.model_media import ModelMedia
from octavo.prompts import TextPrompt
from octavo.text.chat_prompt import Message, Templated, chat_prompt


def split_media(messages: Any, media: ModelMedia) -> tuple[Any, list[MediaPart]]:
    """Messages whose media parts say their kind alone, and the media in order, not fetched yet.

    Raises InvalidRequestError for a part whose media are missing or of a wrong kind, and for more of a kind than the
    model takes.
    """
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        return messages, []  # which check_messages refuses
    rest, parts = take_media(messages)
    by_kind: dict[str, list[Any]] = {}
    for part in parts:
        by_kind.setdefault(part.kind, []).append(part.source)
    media.check(by_kind)
    return rest, parts


def media_chat_prompt(
    tokenizer: Templated,
    messages: Sequence[Message],
    media: ModelMedia | None,
    fetcher: MediaFetcher,
    **options: Any,
) -> TextPrompt:
    """The prompt of a conversation, by the arguments of `render_chat`, with its media, not decoded yet.

    Args:
        media: what the model takes beside text; None for models of text alone.
        fetcher: fetches what messages have as URLs.

    Raises as `render_chat`, and InvalidRequestError for media that the model does not take, or that are not there.
    """
    if media is None:
        return chat_prompt(tokenizer, messages, **options)
    rest, parts = split_media(messages, media)
    prompt = chat_prompt(tokenizer, rest, mark=media.mark, **options)
    if parts:
        prompt["multi_modal_data"] = fetch_media(parts, fetcher)
    return prompt
