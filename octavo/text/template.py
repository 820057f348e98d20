"""What a chat template makes of a conversation.

Templates differ in what they take: content as text or as parts, None or "" where an assistant only called tools,
arguments as objects or as JSON text. Nothing says which, so a template is tried on a small conversation of each kind,
and the messages are given to it in the shape that it shows. This runs in a process of its own (template_process.py).
"""

import functools
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.text.template_environment import environment

Message = dict[str, Any]

FIRST, SECOND, NAME, KEY, VALUE = (f"octavo{word}" for word in ("first", "second", "name", "key", "value"))
"""Words that no template writes by itself."""
LONG_ID, SHORT_ID = "chatcmpl-tool-0123456789abcdef0123456789abcdef", "abcdef012"
LONGEST_KEPT = 1 << 17
"""Characters of the longest template that is compiled once for many prompts."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""What templates call the reasoning of a message."""
MISSING = object()
"""No content, not even None."""
REPRESENTED = re.compile(rf"""["']text["']: ["'](?:{FIRST}|{SECOND})|'{KEY}': '{VALUE}'""")
"""Parts or arguments that were written as Python or JSON writes objects: not what a template means."""


@dataclass(frozen=True)
class CallShape:
    """How a template takes a message that calls tools."""

    content: Any = ""
    """What stands for content that is null or missing."""
    arguments_as_text: bool = False
    short_ids: bool = False
    """Mistral's templates refuse ids that have not nine letters and digits."""


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def with_content(message: Mapping[str, Any], content: Any) -> Message:
    """`message` with that content, or without any."""
    rest = {key: value for key, value in message.items() if key != "content"}
    return rest if content is MISSING else {**rest, "content": content}


class ConversationTemplate:
    """A chat template, and what it was found to take.

    Args:
        source: Jinja text.
        special_tokens: `bos_token` and so on, with their text.
        content_format: `string` has it get contents as text, `openai` as parts; `auto`: as it was found to take them.
    """

    def __init__(self, source: str, special_tokens: tuple[tuple[str, str], ...], content_format: str = "auto") -> None:
        self._content_format = content_format
        self._template = environment().from_string(source)
        self._special_tokens = dict(special_tokens)
        self._shapes: dict[Any, Any] = {}

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The template's text for messages just as they are. Raises whatever the template does."""
        names = {"tools": None, "documents": None, "add_generation_prompt": False, **self._special_tokens, **variables}
        return str(self._template.render({**names, "messages": messages}))

    def prompt(
        self,
        messages: Sequence[Message],
        continue_final_message: bool,
        marked: Sequence[str | None] = (),
        marks: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation; with `continue_final_message`, up to the end of the last message's content.

        Args:
            marked: of messages that have media, their text with marks where the media belong.
            marks: the first mark of each kind of media: where the template writes it, it is given the parts.
        """
        if any(text is not None for text in marked):
            messages = self._with_media(messages, marked, marks or {})
        fitted = [self.fit(message) for message in messages]
        if not continue_final_message:
            return self.render(fitted, **variables)
        tag = f"octavo{secrets.token_hex(8)} "
        last, content = _tagged(fitted[-1], tag)
        last["content"] = self._content(last["role"], last["content"])
        return _cut(self.render([*fitted[:-1], last], **variables), tag, content)

    def _with_media(
        self, messages: Sequence[Message], marked: Sequence[str | None], marks: Mapping[str, str]
    ) -> list[Message]:
        """The messages with parts of media as the template shows them, or as text where it shows one of them not."""
        roles = {message["role"] for message, text in zip(messages, marked, strict=True) if text is not None}
        shapes = {kind: self._media_part(sorted(roles), kind, mark) for kind, mark in marks.items()}
        if any(shape is None for shape in shapes.values()):
            pairs = zip(messages, marked, strict=True)
            return [m if text is None else {**m, "content": text} for m, text in pairs]
        return [
            {**m, "content": [shapes.get(p["type"], p) for p in m["content"]]} if text is not None else m
            for m, text in zip(messages, marked, strict=True)
        ]

    def _media_part(self, roles: Sequence[str], kind: str, mark: str) -> dict[str, str] | None:
        """The part for which the template writes the mark of a kind of media, in messages of these roles."""
        key = "media", tuple(roles), kind, mark
        if key not in self._shapes:
            parts = [{"type": kind}, {"type": kind, kind: ""}]
            taken = (p for p in parts if all(self._shows(r, [p, text_part(FIRST)], mark) for r in roles))
            self._shapes[key] = next(taken, None)
        return self._shapes[key]  # type: ignore[no-any-return]

    def fit(self, message: Message) -> Message:
        """`message` in the shape that the template takes."""
        role, content = message["role"], message.get("content", MISSING)
        message = {**message, **_reasoning(message)}
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
            if "tool_call_id" in message and self._calls(MISSING).short_ids:
                message["tool_call_id"] = _short(message["tool_call_id"])
            empty = self._empty(role, content) if content is None or content is MISSING else content
            return with_content(message, self._content(role, empty))
        shape = self._calls(content)
        message["tool_calls"] = [_call(call, shape) for call in message["tool_calls"]]
        content = shape.content if content is MISSING or not content else content
        if isinstance(content, str) and content and message.get("thinking") and not self._takes_thoughts(shape):
            message |= dict.fromkeys(THOUGHTS, f"{message['thinking']}\n\n{content}")
            content = ""
        return with_content(message, self._content(role, content))

    def _takes_thoughts(self, shape: CallShape) -> bool:
        """Whether a message that calls tools may have a thought and content, which gpt-oss' may not."""
        if "thoughts" not in self._shapes:
            user, calling, result = _calling(shape)
            both = with_content({**calling, **dict.fromkeys(THOUGHTS, FIRST)}, SECOND)
            self._shapes["thoughts"] = next(self._tried([[user, both, result]]), None) is not None
        return bool(self._shapes["thoughts"])

    def _content(self, role: str, content: Any) -> Any:
        """Text or parts as messages of this role are shown."""
        if not isinstance(content, (str, list)):
            return content
        if self._content_format == "openai":
            return [text_part(content)] if isinstance(content, str) else content
        if self._content_format == "string":
            if isinstance(content, str):
                return content
            if all(part["type"] == "text" for part in content):
                return "\n".join(part["text"] for part in content)
        shown = self._shown(role)
        if isinstance(content, str):
            return content if "text" in shown or not shown else [text_part(content)]
        if "parts" in shown or any(part["type"] != "text" for part in content):
            return content
        text = "\n".join(part["text"] for part in content)
        return text if "text" in shown or not shown else [text_part(text)]

    def _shown(self, role: str) -> frozenset[str]:
        """Which of `text`, `parts` and (the first) `part` the template shows."""
        if ("shown", role) not in self._shapes:
            kinds = {"text": FIRST, "parts": [text_part(FIRST), text_part(SECOND)], "part": [text_part(FIRST)]}
            found = frozenset(kind for kind, content in kinds.items() if self._shows(role, content))
            self._shapes["shown", role] = found or (self._shown("user") if role != "user" else found)
        return self._shapes["shown", role]  # type: ignore[no-any-return]

    def _shows(self, role: str, content: Any, mark: str = "") -> bool:
        parts = content if isinstance(content, list) else [text_part(content)]
        words = [part["text"] for part in parts if part["type"] == "text"]
        text = next(self._tried(self._conversations(role, content)), "")
        return all(word in text.lower() for word in words) and mark in text and not REPRESENTED.search(text)

    def _empty(self, role: str, content: Any) -> Any:
        """What stands for no content (None or MISSING) in a message of this role: the same if it can be."""
        key = "empty", role, content is None
        if key not in self._shapes:
            text = next(self._tried(self._conversations(role, content)), "None")
            self._shapes[key] = "" if "None" in text else content
        return self._shapes[key]

    def _calls(self, content: Any) -> CallShape:
        """How the template takes calls of tools beside content of this kind: None, MISSING, "" or something.

        Some show calls only where the content is None, and some fail then.
        """
        is_empty = content is MISSING or not content
        key = "calls", content is None, content is MISSING, is_empty
        if key not in self._shapes:
            shapes = [
                CallShape(given, as_text, short)
                for short in (False, True)
                for given in ([content, "", None] if is_empty else [FIRST])
                for as_text in (False, True)
            ]
            texts = [(s, next(self._tried([_calling(s)]), None)) for s in shapes]
            taken = [(s, t) for s, t in texts if t is not None and (isinstance(s.content, str) or "None" not in t)]
            best = [s for s, t in taken if all(w in t for w in (NAME, KEY, VALUE)) and not REPRESENTED.search(t)]
            self._shapes[key] = next(iter([*best, *(s for s, _ in taken)]), CallShape())
        return self._shapes[key]  # type: ignore[no-any-return]

    def _conversations(self, role: str, content: Any) -> Iterator[list[Message]]:
        """Small conversations with such a message, of which a template should take one."""
        message, user = with_content({"role": role}, content), {"role": "user", "content": "Hello"}
        if role == "tool":
            shape = self._calls(MISSING)
            message["tool_call_id"] = SHORT_ID if shape.short_ids else LONG_ID
            yield [*_calling(shape)[:-1], {"name": NAME, **message}]
        elif role == "user":
            yield [message]
        elif role == "assistant":
            yield from ([user, message, user], [user, message])
        else:
            yield from ([message, user], [user, message])

    def _tried(self, conversations: Iterator[list[Message]] | list[list[Message]]) -> Iterator[str]:
        """The texts of those conversations that the template takes."""
        for messages in conversations:
            try:
                yield self.render(messages)
            except Exception:  # whatever it raises, it does not take this
                continue


def compiled(
    source: str, special_tokens: tuple[tuple[str, str], ...], content_format: str = "auto"
) -> ConversationTemplate:
    """The template, kept where it is no longer than the longest published ones: a process has little memory."""
    return (_kept if len(source) <= LONGEST_KEPT else ConversationTemplate)(source, special_tokens, content_format)


@functools.lru_cache(maxsize=32)
def _kept(source: str, special_tokens: tuple[tuple[str, str], ...], content_format: str) -> ConversationTemplate:
    return ConversationTemplate(source, special_tokens, content_format)


def _calling(shape: CallShape) -> list[Message]:
    """A conversation with a call and its result, in that shape."""
    name = SHORT_ID if shape.short_ids else LONG_ID
    call = {"id": name, "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}}
    assistant = with_content({"role": "assistant", "tool_calls": [_call(call, shape)]}, shape.content)
    result = {"role": "tool", "name": NAME, "tool_call_id": name, "content": SECOND}
    return [{"role": "user", "content": "Hello"}, assistant, result]


def _call(call: Mapping[str, Any], shape: CallShape) -> Message:
    """A call with its arguments as the template takes them; they were given as JSON text or as an object."""
    arguments = call["function"].get("arguments") or "{}"
    if shape.arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not shape.arguments_as_text and isinstance(arguments, str):
        arguments = json.loads(arguments)
    shaped = {**call, "function": {**call["function"], "arguments": arguments}}
    if shape.short_ids and "id" in call:
        shaped["id"] = _short(call["id"])
    return shaped


def _short(call_id: Any) -> str:
    """An id's last nine letters and digits, so that a call and its result still agree."""
    return re.sub(r"[^a-zA-Z0-9]", "", str(call_id)).rjust(9, "0")[-9:]


def _reasoning(message: Mapping[str, Any]) -> Message:
    """A message's reasoning under all names that templates know it by."""
    found = next((v for name in THOUGHTS if (v := message.get(name)) is not None), None)
    return (
        {} if found is None else {**dict.fromkeys(THOUGHTS, found), **{n: message[n] for n in THOUGHTS if n in message}}
    )


def _tagged(message: Message, tag: str) -> tuple[Message, str]:
    """`message` with `tag` at the end of its content, and that content's text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": content + tag}, content
    text = content[-1]["text"]
    return {**message, "content": [*content[:-1], text_part(text + tag)]}, text


def _cut(text: str, tag: str, content: str) -> str:
    """`text` up to `tag`, which stands behind `content`. Raises LookupError where it is not there.

    `tag` ends in a space: where that is gone, the template takes spaces from the ends of contents, and the content
    loses those that it ends in as well.
    """
    at = text.rfind(tag.rstrip())
    if at < 0:
        raise LookupError("the chat template does not show the last message, so it cannot be continued")
    spaces = len(content) - len(content.rstrip())
    trimmed = not text.startswith(tag, at) and content.strip()
    return text[: at - spaces] if trimmed and text[:at].endswith(content[len(content) - spaces :]) else text[:at]
