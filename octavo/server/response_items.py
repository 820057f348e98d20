"""Items of the Responses API as messages of a chat."""

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from octavo.server.body import BodyError
from octavo.server.input_files import file_text

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""Of messages, and what chat templates call them."""
TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
"""What the ids of items begin with."""

Item = dict[str, Any]
Message = dict[str, Any]


def input_items(given: str | Sequence[Item]) -> list[Item]:
    """A request's input as items, each with an id."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    items = list[Item]()
    for item in given:
        kind = item.get("type") or "message"
        new = {"id": f"{PREFIXES.get(str(kind), 'item')}_{uuid.uuid4().hex}", "type": kind, "status": "completed"}
        items.append({**new, **{key: value for key, value in item.items() if value is not None}})
    return items


def messages_of(instructions: str | None, items: Iterable[Item], first: int = 0) -> list[Message]:
    """The conversation. Raises BodyError that names the item at fault.

    What an assistant thought, said and called in turn is one message, as chats have it; instructions are in front, with
    what the first items say as the system.

    Args:
        first: the first item's number: below zero, where earlier conversation comes before the request's own.
    """
    messages: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for i, item in enumerate(items, first):
        place = f"input[{i}]"
        kind = item.get("type") or "message"
        match kind:
            case "message":
                _add_message(messages, item, place)
            case "reasoning":
                _assistant(messages, "reasoning_content")["reasoning_content"] = _thought(item, place)
            case "function_call":
                _add_call(messages, item, place)
            case "function_call_output":
                output = _content(item.get("output"), f"{place}.output")
                messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", place), "content": output})
            case _:
                raise BodyError(
                    f"{kind!r:.60} is not supported; items are message, reasoning, function_call and "
                    "function_call_output.",
                    f"{place}.type",
                )
    if not messages:
        raise BodyError("there is nothing in it.", "input")
    return messages


def _add_message(messages: list[Message], item: Item, place: str) -> None:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BodyError(f"{role!r:.60} is unknown; it is one of {', '.join(ROLES)}.", f"{place}.role")
    content = _content(item.get("content"), f"{place}.content")
    if role == "assistant":
        _assistant(messages, "content")["content"] = content
        return
    first = messages[0] if len(messages) == 1 else {}
    said = first.get("content")
    if ROLES[role] == first.get("role") == "system" and isinstance(said, str) and isinstance(content, str):
        first["content"] = f"{said}\n\n{content}"  # many templates have room for one
    else:
        messages.append({"role": ROLES[role], "content": content})


ORDER = ("reasoning_content", "content", "tool_calls")
"""Of what an assistant's message has."""


def _assistant(messages: list[Message], key: str) -> Message:
    """The assistant's message that goes on with this, or a new one."""
    last = messages[-1] if messages else {}
    after = ORDER[ORDER.index(key) + (key == "tool_calls") :]
    if last.get("role") != "assistant" or any(last.get(one) for one in after):
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _add_call(messages: list[Message], item: Item, place: str) -> None:
    name, call_id = _text(item, "name", place), _text(item, "call_id", place)
    arguments = item.get("arguments") or "{}"
    if not isinstance(arguments, str):
        raise BodyError("it must be JSON text.", f"{place}.arguments")
    function = {"name": name, "arguments": arguments}
    calls = _assistant(messages, "tool_calls").setdefault("tool_calls", [])
    calls.append({"id": call_id, "type": "function", "function": function})


def _thought(item: Item, place: str) -> str:
    """What was thought, or where only a summary is there, that."""
    content = _content(item.get("content") or item.get("summary") or "", f"{place}.content")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _text(item: Item, key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise BodyError("it must be text that is not empty.", f"{place}.{key}")
    return value


def _content(content: Any, place: str) -> Any:
    """Text, or the parts of a chat's content; one text alone as text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BodyError("it must be text, or a list of parts.", place)
    parts = [_part(part, f"{place}[{i}]") for i, part in enumerate(content)]
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise BodyError("it must be text.", f"{place}.text")
        return {"type": "text", "text": text}
    if kind == "input_image":
        url = part.get("image_url")
        if not isinstance(url, str):
            raise BodyError("it must be the picture's URL, which may be a data URL; file_id is not supported.", place)
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    if kind == "input_file":
        return {"type": "text", "text": file_text(part, place)}
    raise BodyError(
        f"{kind!r:.60} is no part that is supported: send input_text, input_image or input_file.", f"{place}.type"
    )
