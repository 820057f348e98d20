"""Chat messages to a prompt, by the model's own Jinja template, in a sandbox."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.loading.tokenizer import Tokenizer

Message = Mapping[str, Any]


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> Any:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def check_messages(messages: Any) -> list[Message]:
    """The messages of one conversation. Raises InvalidRequestError that names the one at fault."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequestError('messages must be a list such as [{"role": "user", "content": "Hello"}].')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(
                f"message {i} needs a role (system, user or assistant) and a content: {message!r}"
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise InvalidRequestError(f"message {i} ({message['role']}) has no content.")
    return [{**m, "content": _text(m.get("content"), i)} for i, m in enumerate(messages)]


def _text(content: Any, index: int) -> str | None:
    """OpenAI's content parts joined; only text is understood."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError(f"message {index}: content must be text or a list of parts.")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text":
            texts.append(str(part.get("text", "")))
        else:
            raise InvalidRequestError(f"message {index}: only text parts are understood, not {part!r:.80}.")
    return "\n".join(texts)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[dict[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The prompt of a conversation.

    Args:
        template: a Jinja template, or the name of one of the model's; its default if None.
        add_generation_prompt: end with the beginning of the assistant's answer.
        continue_final_message: end inside the last message, so that the model goes on with it.
        tools: descriptions of functions, for templates that take them.
        variables: more names for the template.

    Raises InvalidRequestError for messages the template refuses, or where there is no template.
    """
    from jinja2.exceptions import TemplateError

    messages = check_messages(messages)
    if continue_final_message and add_generation_prompt:
        raise InvalidRequestError("continue_final_message and add_generation_prompt exclude each other.")
    templates = tokenizer.chat_templates
    name = "tool_use" if tools and "tool_use" in templates else "default"
    source = templates.get(template or name, template)
    if not source:
        raise InvalidRequestError(
            "this model has no chat template. Give one with chat_template=, or use generate() with a plain prompt."
        )
    try:
        text: str = _compile(source).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **{**tokenizer.special_tokens, **variables},
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise InvalidRequestError(f"the chat template refuses these messages: {error}") from error
    if continue_final_message:
        final = (messages[-1].get("content") or "").strip()
        at = text.rfind(final)
        if at < 0:
            raise InvalidRequestError("the chat template does not show the last message, so it cannot be continued.")
        text = text[: at + len(final)]
    return text
