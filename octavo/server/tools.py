"""Tool calls: found in a model's text as its family writes them, or forced by a schema."""

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.params import StructuredOutputsParams
from octavo.server.protocol import ChatRequest, NamedTool, Tool


def call(name: str, arguments: Any, index: int | None = None) -> dict[str, Any]:
    """A tool call as OpenAI's clients read it; arguments are JSON text."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    made = {
        "id": f"chatcmpl-tool-{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": text},
    }
    return made if index is None else {"index": index, **made}


def _read(text: str) -> list[tuple[str, Any]] | None:
    """Calls in JSON: an object or a list of them, with `name` and `arguments` or `parameters`."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    found = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        found.append((item["name"], item.get("arguments", item.get("parameters", {}))))
    return found


class ToolParser:
    """Takes a model's text piece by piece, and gives what is content and what is a call.

    Text is held back from where a call may begin until it is clear what it is.
    """

    opening: tuple[str, ...] = ()
    """What calls begin with."""
    between = " \t\r\n"
    """Characters that may stand between calls."""

    def __init__(self) -> None:
        self._held = ""
        self._after_call = False
        self.num_calls = 0

    def feed(self, text: str, finished: bool) -> tuple[str, list[tuple[str, Any]]]:
        """Content that is certain, and calls that are complete."""
        self._held += text
        content, calls = "", list[tuple[str, Any]]()
        while self._held:
            if self._after_call:  # what stands between calls is no content
                self._held = self._held.lstrip(self.between)
                self._after_call = not self._held
                continue
            at = min((i for o in self.opening if (i := self._held.find(o)) >= 0), default=-1)
            if at < 0:
                keep = 0 if finished else self._may_begin()
                content += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                break
            taken = self.take(self._held[at:], finished)
            if taken is None:
                content += self._held[:at]
                self._held = self._held[at:]
                if finished:  # a call that was cut short is only text
                    content, self._held = content + self._held, ""
                break
            found, length = taken
            content += self._held[:at]
            calls += found
            self._held, self._after_call = self._held[at + length :], True
        self.num_calls += len(calls)
        return content, calls

    def _may_begin(self) -> int:
        """Characters at the end that may turn out to begin a call."""
        for length in range(min(max(map(len, self.opening)) - 1, len(self._held)), 0, -1):
            if any(o.startswith(self._held[-length:]) for o in self.opening):
                return length
        return 0

    def take(self, text: str, finished: bool) -> tuple[list[tuple[str, Any]], int] | None:
        """The calls at the start of `text` and how long they are; None while more of it must come."""
        raise NotImplementedError


class HermesParser(ToolParser):
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen2.5 and many others."""

    opening = ("<tool_call>",)

    def take(self, text: str, finished: bool) -> tuple[list[tuple[str, Any]], int] | None:
        match = re.match(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
        if match is None:
            whole = _read(text.removeprefix("<tool_call>").strip()) if finished else None
            return None if whole is None else (whole, len(text))
        found = _read(match[1].strip())
        return None if found is None else (found, match.end())


class MistralParser(ToolParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": ...}]`."""

    opening = ("[TOOL_CALLS]",)

    def take(self, text: str, finished: bool) -> tuple[list[tuple[str, Any]], int] | None:
        found = _read(text.removeprefix("[TOOL_CALLS]").strip())
        return None if found is None else (found, len(text))


class LlamaParser(ToolParser):
    """`{"name": ..., "parameters": ...}`, alone or after `<|python_tag|>`, `;` between several: Llama 3."""

    opening = ("<|python_tag|>", "{")
    between = " \t\r\n;"

    def take(self, text: str, finished: bool) -> tuple[list[tuple[str, Any]], int] | None:
        body = text.removeprefix("<|python_tag|>")
        try:
            _, length = json.JSONDecoder().raw_decode(body.lstrip())
        except ValueError:
            return None
        start = len(body) - len(body.lstrip())
        found = _read(body[start : start + length])
        if found is None:
            return None
        return found, len(text) - len(body) + start + length


PARSERS: dict[str, type[ToolParser]] = {"hermes": HermesParser, "mistral": MistralParser, "llama3_json": LlamaParser}


def choose_parser(option: str, templates: Sequence[str]) -> type[ToolParser] | None:
    """The parser of `--tool-parser`; `auto` goes by what the chat templates write."""
    if option != "auto":
        return PARSERS.get(option)
    text = "".join(templates)
    if "[TOOL_CALLS]" in text:
        return MistralParser
    if "<tool_call>" in text:
        return HermesParser
    return LlamaParser if "python_tag" in text or '"parameters":' in text else None


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
        return StructuredOutputsParams(json=_parameters(named))
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": t.function.name}, "parameters": _parameters(t)},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for t in tools
    ]
    most = {} if request.parallel_tool_calls is not False else {"maxItems": 1}
    return StructuredOutputsParams(json={"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}})


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


def read_forced(request: ChatRequest, text: str) -> list[tuple[str, Any]]:
    """The calls that a forced answer makes: of an answer that was cut short, those that are complete."""
    if isinstance(request.tool_choice, NamedTool):
        return [(request.tool_choice.function.name, text)]
    found, rest, decoder = list[tuple[str, Any]](), text.lstrip().removeprefix("["), json.JSONDecoder()
    while rest := rest.lstrip(" \t\r\n,"):
        try:
            item, end = decoder.raw_decode(rest)
        except ValueError:
            break
        found.append((item["name"], item["parameters"]))
        rest = rest[end:]
    return found
