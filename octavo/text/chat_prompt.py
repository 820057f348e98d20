"""Chat messages to a prompt, by the model's own Jinja template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from octavo.config import MEDIA_KINDS
from octavo.errors import InvalidRequestError
from octavo.prompts import TextPrompt
from octavo.text.media_marks import Mark, mark_media
from octavo.text.template_files import ChatTemplates
from octavo.text.template_process import render

Message = Mapping[str, Any]

RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "conversation"}
RESERVED |= {"template", "tokenize", "tokenizer", "self", "loop", "caller", "varargs", "kwargs", "super"}
"""Names that mean something in every template, or in Jinja itself."""
CONTENT_FORMATS = ("auto", "string", "openai")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of content parts that are text, and where they have it."""


def check_messages(messages: Any, has_media: bool = False) -> list[dict[str, Any]]:
    """The messages of one conversation. Raises InvalidRequestError that names the one at fault.

    Args:
        has_media: whether parts {"type": kind}, as media_chat leaves them, may be among the contents.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequestError('messages must be a list such as [{"role": "user", "content": "Hello"}].')
    return [_checked(message, i, has_media) for i, message in enumerate(messages)]


def _checked(message: Any, index: int, has_media: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequestError(
            f"message {index} needs a role (system, user or assistant) and a content: {message!r:.200}"
        )
    checked = dict(message)
    if "content" in message:
        checked["content"] = _content(message["content"], index, has_media)
    elif message["role"] in ("system", "developer", "user"):
        raise InvalidRequestError(f"message {index} ({message['role']}) has no content.")
    if message.get("tool_calls"):
        checked["tool_calls"] = _calls(message["tool_calls"], index)
    return checked


def _content(content: Any, index: int, has_media: bool) -> str | list[dict[str, str]] | None:
    """Text, or OpenAI's content parts: texts, and where there may be any, media; without a part, the text is empty."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError(f"message {index}: content must be text or a list of parts.")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if has_media and kind in MEDIA_KINDS:
            parts.append({"type": kind})
            continue
        if key is None:
            known = f"text and {', '.join(MEDIA_KINDS)} parts are" if has_media else "only text parts are"
            raise InvalidRequestError(f"message {index}: {known} supported, not {part!r:.80}.")
        text = part.get(key, "") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise InvalidRequestError(f"message {index}: a part's {key} must be text, not {text!r:.80}.")
        parts.append({"type": "text", "text": text})
    return parts or ""


def _calls(calls: Any, index: int) -> list[dict[str, Any]]:
    """Calls of tools, whose arguments are an object or its JSON text."""
    for call in calls if isinstance(calls, Sequence) else [None]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(f"message {index}: a tool call needs a function with a name.")
        if isinstance(arguments := function.get("arguments") or "{}", str):
            try:
                json.loads(arguments)
            except (ValueError, RecursionError) as error:
                raise InvalidRequestError(f"message {index}: the tool call's arguments are not JSON.") from error
    return [dict(call) for call in calls]


def _template(templates: Mapping[str, str], name_or_text: str | None, has_tools: bool) -> str:
    """The Jinja text, given by its name or itself; the model's default if None."""
    if name_or_text is not None:
        return templates.get(name_or_text, name_or_text)
    name = "tool_use" if has_tools and "tool_use" in templates else "default"
    if templates and name not in templates:
        names = ", ".join(sorted(templates))
        raise InvalidRequestError(
            f"this model has chat templates, but no default. Set chat_template to one of {names}."
        )
    if not templates.get(name):
        raise InvalidRequestError(
            "this model has no chat template. Give one with chat_template=, or use generate() with a plain prompt."
        )
    return templates[name]


class Templated(Protocol):
    """What a prompt needs of a tokenizer."""

    chat_templates: ChatTemplates
    special_tokens: dict[str, str]
    """`bos_token`, `eos_token` and so on, as chat templates ask for them."""


def render_chat(
    tokenizer: Templated,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[dict[str, Any]] | None = None,
    documents: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    mark: Mark | None = None,
    content_format: str = "auto",
) -> str:
    """The prompt of a conversation.

    Args:
        template: a Jinja template, or the name of one of the model's; its default if None.
        add_generation_prompt: end with the beginning of the assistant's answer.
        continue_final_message: end inside the last message, so that the model goes on with it.
        tools: descriptions of functions, for templates that take them.
        documents: texts to answer from, for templates that take them.
        variables: more names for the template.
        mark: how a prompt says where media belong; None for models of text alone.
        content_format: one of CONTENT_FORMATS: how the template gets contents: as it takes them, as text, as parts.

    Raises InvalidRequestError for messages that the template refuses, where there is no template, and where it takes
    too long or makes too much.
    """
    checked = check_messages(messages, mark is not None)
    if content_format not in CONTENT_FORMATS:
        known = ", ".join(CONTENT_FORMATS)
        raise InvalidRequestError(f"chat_template_content_format={content_format!r:.40} is unknown; choose of {known}.")
    if continue_final_message and add_generation_prompt:
        raise InvalidRequestError("continue_final_message and add_generation_prompt cannot both be set.")
    if reserved := sorted(RESERVED.intersection(variables or ())):
        raise InvalidRequestError(
            f"chat_template_kwargs holds {reserved[0]!r}, a name of the template's own. Choose another, or use the "
            "argument of that name, where there is one."
        )
    return render(
        {
            "source": _template(tokenizer.chat_templates, template, bool(tools)),
            "special_tokens": tokenizer.special_tokens,
            "messages": checked,
            "content_format": content_format,
            "continue_final_message": continue_final_message,
            **({} if mark is None else _media(checked, mark, continue_final_message)),
            "variables": {
                "add_generation_prompt": add_generation_prompt,
                "tools": tools,
                "documents": documents,
                **(variables or {}),
            },
        }
    )


def _media(messages: list[dict[str, Any]], mark: Mark, continue_final_message: bool) -> dict[str, Any]:
    """What a template needs for media: of messages that have any, their text with marks; and each kind's first mark."""
    kinds = [
        {p["type"] for p in c if p["type"] in MEDIA_KINDS} if isinstance(c := m.get("content"), list) else set()
        for m in messages
    ]
    if not any(kinds):
        return {}
    if continue_final_message and kinds[-1] and messages[-1]["content"][-1]["type"] in MEDIA_KINDS:
        raise InvalidRequestError("continue_final_message: the last message must end in text, not in media.")
    texts = mark_media(messages, mark)
    return {
        "marked": [m["content"] if k else None for m, k in zip(texts, kinds, strict=True)],
        "marks": {kind: mark(kind, 1) for kind in set[str]().union(*kinds)},
    }


def chat_prompt(tokenizer: Templated, messages: Sequence[Message], **options: Any) -> TextPrompt:
    """The prompt of a conversation, by the arguments of `render_chat`: the template writes special tokens itself."""
    return {"prompt": render_chat(tokenizer, messages, **options), "add_special_tokens": False}
