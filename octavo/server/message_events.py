"""What an answer's parts are in Anthropic's API: content blocks, and the events that tell of them."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Event, Text, Thought
from octavo.server.tool_calls import read_arguments

Value = dict[str, Any]
_EMPTY: dict[str, Value] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


class ContentBlocks:
    """Content blocks as they come, and an event for each step of each.

    Args:
        call_id: gives the id of a call by its name and number, where the model wrote none.
        is_told: whether the events are told as they come; what has not been told can be taken back.
        shows_thoughts: whether what is thought is a block.
    """

    def __init__(self, call_id: Callable[[str, int], str], is_told: bool, shows_thoughts: bool) -> None:
        self.blocks: list[Value] = []
        self.num_calls = 0
        """Calls that are complete."""
        self._call_id, self._is_told, self._shows_thoughts = call_id, is_told, shows_thoughts
        self._open: Value | None = None
        self._parts: list[str] = []
        self._num_begun = 0

    def take(self, events: Sequence[Event]) -> list[Value]:
        """Anthropic's events of these."""
        out = list[Value]()
        for event in events:
            match event:
                case Thought(text):
                    out += self._text("thinking", text) if self._shows_thoughts else []
                case Text(text):
                    out += self._text("text", text)
                case CallBegin(name, id):
                    out += self.close()
                    call_id = id or self._call_id(name, self._num_begun)
                    self._num_begun += 1
                    out += self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                case CallArguments(text):
                    self._parts.append(text)
                    out.append(self._delta("input_json_delta", partial_json=text))
                case CallEnd():
                    self.num_calls += 1
                    out += self.close()
                case CallBroken(text, rest):
                    out += self._broken(text, rest)
        return out

    def close(self) -> list[Value]:
        """The open block, if there is one, has ended."""
        block, text = self._open, "".join(self._parts)
        if block is None:
            return []
        out = list[Value]()
        if block["type"] == "tool_use":
            block["input"] = read_arguments(text) or {}
        elif block["type"] == "text":
            block["text"] = text
        else:
            # Clients send thoughts back only with a signature; what it is, nobody here looks at.
            block |= {"thinking": text, "signature": uuid.uuid4().hex}
            out.append(self._delta("signature_delta", signature=block["signature"]))
        self._open = None
        return [*out, {"type": "content_block_stop", "index": len(self.blocks) - 1}]

    def _text(self, kind: str, text: str) -> list[Value]:
        out = list[Value]()
        if self._open is None or self._open["type"] != kind:
            out += self.close()
            last = self.blocks[-1] if self.blocks else {}
            if not self._is_told and last.get("type") == kind:  # what came between was taken back
                self._open, self._parts = last, [last[kind]]
            else:
                out += self._begin(dict(_EMPTY[kind]))
        self._parts.append(text)
        return [*out, self._delta(f"{kind}_delta", **{kind: text})]

    def _begin(self, block: Value) -> list[Value]:
        self.blocks.append(block)
        self._open, self._parts = block, []
        return [{"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}]

    def _broken(self, text: str, rest: str) -> list[Value]:
        """The open call is none. What was told of it stays."""
        if self._is_told:
            return [*self.close(), *(self._text("text", rest) if rest else [])]
        self.blocks.pop()
        self._open = None
        return self._text("text", text)

    def _delta(self, kind: str, **fields: Any) -> Value:
        index = len(self.blocks) - 1
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}
