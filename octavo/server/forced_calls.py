"""Calls that a schema forces: where tool_choice is `required` or names a tool."""

from collections.abc import Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.params import StructuredOutputsParams
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Event, Text
from octavo.server.json_calls import JsonCalls
from octavo.server.protocol import ChatRequest, NamedTool, Tool
from octavo.server.tool_parser import ToolFormat, ToolParser

FORCED = ToolFormat(JsonCalls(argument_keys=("parameters",)), bare=("[",), only_first=True)
"""A list of calls, which is all of the answer."""


def forced(request: ChatRequest) -> StructuredOutputsParams | None:
    """The schema that makes the model call a tool, where tool_choice is `required` or names one.

    Raises InvalidRequestError for a tool that is not there.
    """
    choice, tools = request.tool_choice, request.tools or []
    if choice in (None, "none", "auto"):
        return None
    if not tools:
        raise InvalidRequestError("tool_choice asks for a tool, and there are no tools.")
    if isinstance(choice, NamedTool):
        named = next((t for t in tools if t.function.name == choice.function.name), None)
        if named is None:
            names = ", ".join(t.function.name for t in tools)
            raise InvalidRequestError(f"tool_choice names {choice.function.name!r}; the tools are {names}.")
        return forced_arguments(named)
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": t.function.name},
                "parameters": _moved(_parameters(t), f"#/items/anyOf/{i}/properties/parameters"),
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for i, t in enumerate(tools)
    ]
    most = {} if request.parallel_tool_calls is not False else {"maxItems": 1}
    return StructuredOutputsParams(json={"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}})


def only_tool(request: ChatRequest) -> Tool | None:
    """The tool that must be called, where that is one of them, which tool_choice names, or which is alone."""
    choice, tools = request.tool_choice, request.tools or []
    if isinstance(choice, NamedTool):
        return next((t for t in tools if t.function.name == choice.function.name), None)
    return tools[0] if choice == "required" and len(tools) == 1 else None


def forced_arguments(tool: Tool) -> StructuredOutputsParams:
    """The schema of a tool's arguments alone."""
    return StructuredOutputsParams(json=_parameters(tool))


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


_DATA = ("const", "enum", "default", "examples")
"""Keywords whose values are no schemas."""


def _moved(schema: Any, place: str) -> Any:
    """A schema as a part of another, at the pointer `place`: what refers to its root (`#/$defs/...`) refers there."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value if key in _DATA else _moved(value, place) for key, value in schema.items()}
    ref = out.get("$ref")
    if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
        out["$ref"] = place + ref[1:]
    return out


class ForcedParser:
    """Takes a forced answer piece by piece, and gives its calls as they come.

    What is not among them (a call that was cut short) is text where there are no calls, and else left out.

    Args:
        request: says which tool, or any.
    """

    def __init__(self, request: ChatRequest) -> None:
        choice = request.tool_choice
        self._named = choice.function.name if isinstance(choice, NamedTool) else None
        self._parser = ToolParser(FORCED, max_calls=1 if request.parallel_tool_calls is False else None)
        self._is_begun = False
        self._texts = list[str]()

    def feed(self, text: str, finished: bool) -> list[Event]:
        """What is certain now."""
        if self._named is None:
            return self._several(self._parser.feed(text, finished), finished)
        events = list[Event]()
        if not self._is_begun:
            events.append(CallBegin(self._named))
            self._is_begun = True
        return [*events, *([CallArguments(text)] if text else []), *([CallEnd()] if finished else [])]

    def _several(self, found: Sequence[Event], finished: bool) -> list[Event]:
        events = list[Event]()
        for event in found:
            if isinstance(event, Text):
                self._texts.append(event.text)
            elif isinstance(event, CallBroken) and self._parser.num_calls:
                events.append(CallBroken("", ""))
            else:
                events.append(event)
        if finished and self._texts and not self._parser.num_calls:
            events.append(Text("".join(self._texts)))
        return events
