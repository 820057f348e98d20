"""What an answer's parts are in the Responses API: output items, and the events that tell of them."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Event, Text, Thought

Value = dict[str, Any]


class OutputItems:
    """Output items as they come, and an event for each step of each.

    Args:
        call_id: gives the id of a call by its name and number, where the model wrote none.
        is_told: whether the events are told as they come; what has not been told can be taken back.
    """

    def __init__(self, call_id: Callable[[str, int], str], is_told: bool) -> None:
        self.items: list[Value] = []
        self._call_id, self._is_told = call_id, is_told
        self._open: Value | None = None
        self._parts: list[str] = []
        """The open item's text so far."""
        self._logprobs: list[Value] = []
        self._num_calls = 0

    def take(self, events: Sequence[Event], logprobs: Sequence[Value] = ()) -> list[Value]:
        """The Responses API's events of these.

        Args:
            logprobs: of the text among them.
        """
        out = list[Value]()
        left = list(logprobs)
        for event in events:
            match event:
                case Thought(text):
                    out += self._text("reasoning", text)
                case Text(text):
                    out += self._text("message", text, left)
                    left = []
                case CallBegin(name, id):
                    out += self.close()
                    call_id = id or self._call_id(name, self._num_calls)
                    self._num_calls += 1
                    out += self._begin("function_call", {"arguments": "", "call_id": call_id, "name": name})
                case CallArguments(text):
                    self._parts.append(text)
                    out.append(self._event("response.function_call_arguments.delta", delta=text))
                case CallEnd():
                    out += self.close()
                case CallBroken(text, rest):
                    out += self._broken(text, rest)
        return out

    def close(self, status: str = "completed") -> list[Value]:
        """The open item, if there is one, is complete, or cut short."""
        item, text = self._open, "".join(self._parts)
        if item is None:
            return []
        out = list[Value]()
        if item["type"] == "function_call":
            item["arguments"] = text
            out.append(self._event("response.function_call_arguments.done", arguments=text, name=item["name"]))
        else:
            part = item["content"][0]
            part["text"] = text
            kind, more = "reasoning_text", {}
            if item["type"] == "message":
                part["logprobs"] = self._logprobs
                kind, more = "output_text", {"logprobs": self._logprobs}
            out.append(self._event(f"response.{kind}.done", content_index=0, text=text, **more))
            out.append(self._event("response.content_part.done", content_index=0, part=dict(part)))
        item["status"] = status
        done = {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": dict(item)}
        self._open = None
        return [*out, done]

    def _text(self, kind: str, text: str, logprobs: Sequence[Value] = ()) -> list[Value]:
        out = list[Value]()
        if self._open is None or self._open["type"] != kind:
            out += self.close()
            out += self._begin_text(kind)
        self._parts.append(text)
        if kind == "reasoning":
            return [*out, self._event("response.reasoning_text.delta", content_index=0, delta=text)]
        self._logprobs += logprobs
        told = list(logprobs)
        return [*out, self._event("response.output_text.delta", content_index=0, delta=text, logprobs=told)]

    def _begin_text(self, kind: str) -> list[Value]:
        last = self.items[-1] if self.items else {}
        if not self._is_told and last.get("type") == kind:  # what came between was taken back
            part = last["content"][0]
            self._open, self._parts, self._logprobs = last, [part["text"]], part.get("logprobs", [])
            return []
        if kind == "reasoning":
            out = self._begin(kind, {"summary": [], "content": []})
            part = {"type": "reasoning_text", "text": ""}
        else:
            out = self._begin(kind, {"role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        assert self._open is not None
        self._open["content"] = [part]
        return [*out, self._event("response.content_part.added", content_index=0, part=dict(part))]

    def _begin(self, kind: str, fields: Value) -> list[Value]:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        self._open, self._parts, self._logprobs = item, [], []
        return [{"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(item)}]

    def _broken(self, text: str, rest: str) -> list[Value]:
        """The open call is none. What was told of it stays, and does not count as complete."""
        if self._is_told:
            return [*self.close("incomplete"), *(self._text("message", rest) if rest else [])]
        self.items.pop()
        self._open = None
        return self._text("message", text)

    def _event(self, kind: str, **fields: Any) -> Value:
        assert self._open is not None
        return {"type": kind, "item_id": self._open["id"], "output_index": len(self.items) - 1, **fields}

    def end(self, is_cut: bool) -> list[Value]:
        """The answer has ended: complete, or cut short. It has at least one item."""
        out = [] if self.items else self._begin_text("message")
        return out + self.close("incomplete" if is_cut else "completed")


def ended(response: Value, items: list[Value], finish_reason: str | None, usage: Value) -> Value:
    """The response of an answer that has ended so."""
    is_cut = finish_reason == "length"
    return {
        **response,
        "output": items,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "completed_at": None if is_cut else int(time.time()),
        "usage": usage,
    }
