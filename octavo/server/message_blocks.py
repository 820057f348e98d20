"""Anthropic's messages as those of a chat."""

from collections.abc import Sequence
from typing import Any

from octavo.server.body import BodyError
from octavo.server.tool_calls import dump

Block = dict[str, Any]
Message = dict[str, Any]
ATTRIBUTION = "x-anthropic-billing-header"
"""What a block of Claude Code's system prompt begins with that is for Anthropic alone. It changes with each request, so
that behind it nothing would be found in the prefix cache; vLLM leaves it out too."""


def messages_of(system: str | Sequence[Block] | None, given: Sequence[Message]) -> list[Message]:
    """The conversation. Raises BodyError that names the block at fault."""
    messages = list[Message]()
    if said := _system(system, "system"):
        messages.append({"role": "system", "content": said})
    for i, message in enumerate(given):
        place, role = f"messages[{i}]", message.get("role")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise BodyError("it must be text, or a list of blocks.", f"{place}.content")
        match role:
            case "user":
                messages += _of_user(content, f"{place}.content")
            case "assistant":
                messages.append(_of_assistant(content, f"{place}.content"))
            case "system":
                messages.append({"role": "system", "content": _system(content, f"{place}.content")})
            case _:
                raise BodyError(f"{role!r:.60} is unknown; it is user, assistant or system.", f"{place}.role")
    if not messages:
        raise BodyError("there are none.", "messages")
    return messages


def _system(system: str | Sequence[Block] | None, place: str) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_text(block, "text", f"{place}[{i}]") for i, block in enumerate(system)]
    return "\n".join(text for text in texts if not text.startswith(ATTRIBUTION))


def _of_user(blocks: Sequence[Any], place: str) -> list[Message]:
    """What tools answered is a message for each; what stands between is the user's."""
    messages, parts = list[Message](), list[Block]()

    def flush() -> None:
        if parts:
            messages.append({"role": "user", "content": _joined(parts)})
            parts.clear()

    for i, block in enumerate(blocks):
        where = f"{place}[{i}]"
        if _kind(block) != "tool_result":
            parts += _parts(block, where)
            continue
        flush()
        content = block.get("content") or ""
        if not isinstance(content, (str, list)):
            raise BodyError("it must be text, or a list of blocks.", f"{where}.content")
        if isinstance(content, list):
            inner = [part for j, one in enumerate(content) for part in _parts(one, f"{where}.content[{j}]")]
            content = _joined(inner)
        messages.append({"role": "tool", "tool_call_id": _text(block, "tool_use_id", where), "content": content})
    flush()
    return messages or [{"role": "user", "content": ""}]


def _of_assistant(blocks: Sequence[Any], place: str) -> Message:
    texts, thoughts, calls = list[str](), list[str](), list[Block]()
    for i, block in enumerate(blocks):
        where = f"{place}[{i}]"
        match _kind(block):
            case "text":
                texts.append(_text(block, "text", where))
            case "thinking":
                thoughts.append(_text(block, "thinking", where))
            case "redacted_thinking":
                pass  # nobody here can read it
            case "tool_use":
                if not isinstance(block.get("input", {}), dict):
                    raise BodyError("it must be an object.", f"{where}.input")
                function = {"name": _text(block, "name", where), "arguments": dump(block.get("input", {}))}
                calls.append({"id": _text(block, "id", where), "type": "function", "function": function})
            case kind:
                raise BodyError(f"{kind!r:.60} is nothing that an assistant says here.", f"{where}.type")
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return {**message, "tool_calls": calls} if calls else message


def _parts(block: Any, place: str) -> list[Block]:
    """The parts of a chat's content that a block is."""
    kind = _kind(block)
    source = block.get("source") if kind in ("image", "document") else None
    how = _kind(source)
    if kind == "text":
        return [{"type": "text", "text": _text(block, "text", place)}]
    if kind == "image" and how == "base64":
        media_type, data = _text(source, "media_type", f"{place}.source"), _text(source, "data", f"{place}.source")
        return [{"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}]
    if kind == "image" and how == "url":
        return [{"type": "image_url", "image_url": {"url": _text(source, "url", f"{place}.source")}}]
    if kind == "document" and how == "text":
        title = block.get("title")
        head = f"{title}\n\n" if isinstance(title, str) else ""
        return [{"type": "text", "text": head + _text(source, "data", f"{place}.source")}]
    holder: Any = source if how == "content" else block if kind == "search_result" else {}
    inner = holder.get("content")
    if isinstance(inner, list) and all(_kind(one) in ("text", "image") for one in inner):
        return [part for i, one in enumerate(inner) for part in _parts(one, f"{place}.content[{i}]")]
    what = f"a source of type {how!r:.60}" if source is not None else f"{kind!r:.60}"
    raise BodyError(f"{what} is not supported: send text, or images as base64 or url.", f"{place}.type")


def _joined(parts: list[Block]) -> Any:
    """A content, which is text where that is all."""
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else list(parts)


def _kind(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else None


def _text(block: Any, key: str, place: str) -> str:
    value = block.get(key) if isinstance(block, dict) else None
    if not isinstance(value, str):
        raise BodyError("it must be text.", f"{place}.{key}")
    return value
