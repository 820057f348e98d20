"""How a cross-encoder reads a query and a document: as a chat of these two roles, where it was trained so."""

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.text.chat_prompt import Templated, render_chat


class PairTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's files say of it."""

    name: str = "default"
    """Which of the chat templates."""
    variables: dict[str, Any] = {}
    """More names for it."""

    def source(self, tokenizer: Templated) -> str:
        """The template's text. Raises InvalidRequestError where the model does not have it."""
        if self.name not in tokenizer.chat_templates:
            raise InvalidRequestError(
                f"this model's files say that pairs are written by its chat template {self.name[:60]!r}, which it does "
                "not have. Give one with --chat-template."
            )
        return tokenizer.chat_templates[self.name]


def pair_text(
    tokenizer: Templated, template: str, first: Any, second: Any, variables: Mapping[str, Any]
) -> dict[str, Any]:
    """The prompt of a query and a document. Raises InvalidRequestError as `render_chat`, and for no text."""
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidRequestError("a classifier scores pairs of texts, not of token ids.")
    messages = [{"role": "query", "content": first}, {"role": "document", "content": second}]
    text = render_chat(tokenizer, messages, template=template, add_generation_prompt=False, variables=variables)
    return {"prompt": text}
