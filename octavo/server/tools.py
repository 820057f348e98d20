"""Tool calls: found in a model's text as its family writes them, or forced by a schema."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from octavo.errors import InvalidRequestError
from octavo.params import StructuredOutputsParams
from octavo.server.json_scanner import WHITESPACE, JsonScanner, Scan
from octavo.server.protocol import ChatRequest, NamedTool, Tool
from octavo.server.tool_calls import SURROGATE, Calls, finite, is_text, read_arguments, read_calls
from octavo.text.tokenizer import Tokenizer

FIRST_PRIVATE = 0xD800


def _private(index: int) -> str:
    """What stands in a text for a marker that is a special token: half of a surrogate pair, which no text holds."""
    return chr(FIRST_PRIVATE + index)


class ToolParser:
    """Takes a model's text piece by piece, and gives what is content and what is a call.

    It looks at each character once. Text is held back from where a call may begin until it is clear what it is; what
    turns out not to be a call is content, up to the character that showed it, at which the search goes on. White space
    before, between and after calls belongs to them; it is content where text follows it.

    Args:
        tools: the names that may be called; any if None. It matters for calls without a marker only: behind one, a
            model means a call, and its client can answer that there is no such tool.
        max_calls: what comes beyond so many is left out.
    """

    openings: tuple[str, ...] = ()
    """Markers that a call begins with. The first character of a marker stands at no other place of it."""
    closing = ""
    """The marker that ends a call, where there is one. The end of the answer and the next call end one as well."""
    inner: tuple[str, ...] = ()
    """Markers inside a call."""
    bare = False
    """Whether an object without a marker can be a call."""
    between = WHITESPACE
    """Characters that may stand between calls."""

    def __init__(self, tools: Collection[str] | None = None, max_calls: int | None = None) -> None:
        self.tools, self.max_calls = tools, max_calls
        self.num_calls = 0
        self._content: list[str] = []
        self._calls = Calls()
        self._gap: list[str] | None = []
        """White space that came since the beginning or a call; None within text."""
        self._held: list[str] = []
        """A call, so far."""
        self._seen = ""
        """Characters that may begin a marker."""
        self._is_marked = False
        self._head = ""
        """What comes of a call before its JSON, where a family writes the name there."""
        self._scanner: JsonScanner | None = None
        """Reads the call's JSON, once there is a call."""
        self._json: list[str] = []
        self._found: Calls | None = None
        """The calls in the JSON, once it is complete."""
        starts = (*self.openings, "{") if self.bare else self.openings
        self._openings = frozenset([*starts, *self._privates(self.openings)])
        self._start = re.compile("[" + re.escape("".join(sorted({o[0] for o in self._openings}))) + "]")
        self._closings = frozenset([self.closing, *self._privates((self.closing,))] if self.closing else [])

    @classmethod
    def _markers(cls) -> tuple[str, ...]:
        return (*cls.openings, *((cls.closing,) if cls.closing else ()), *cls.inner)

    @classmethod
    def _privates(cls, markers: Sequence[str]) -> list[str]:
        return [_private(cls._markers().index(m)) for m in markers]

    @classmethod
    def shown_tokens(cls, tokenizer: Tokenizer) -> dict[int, str]:
        """Markers that are special tokens, which a text without special tokens lacks, and what stands for them."""
        shown = {}
        for index, marker in enumerate(cls._markers()):
            for token in tokenizer.encode(marker, add_special_tokens=False):
                if tokenizer.token(token) == marker and marker not in tokenizer.decode([token]):
                    shown[token] = _private(index)
        return shown

    def feed(self, text: str, finished: bool) -> tuple[str, Calls]:
        """Content that is certain, and calls that are complete."""
        at = 0
        while at < len(text):
            end = self._plain(text, at)
            if end > at:
                part = text[at:end]
                if self._scanner is None:
                    self._content.append(part)
                else:
                    self._held.append(part)
                    self._json.append(part)
            if end < len(text):
                self._take(text[end])
            at = end + 1
        if finished:
            self._finish()
        content = SURROGATE.sub("", "".join(self._content))
        calls, self._content, self._calls = self._calls, [], Calls()
        return content, calls

    def _plain(self, text: str, start: int) -> int:
        """Where the part of `text` from `start` on ends that changes nothing: prose, or the midst of a string."""
        if self._scanner is not None:
            return self._scanner.plain(text, start) if self._found is None else start
        if self._seen or self._gap is not None:
            return start
        match = self._start.search(text, start)
        return len(text) if match is None else match.start()

    def _take(self, char: str) -> None:
        if self._scanner is None:
            self._take_text(char)
        elif self._found is None:
            self._take_json(char)
        else:
            self._take_end(char)

    def _take_text(self, char: str) -> None:
        seen = self._seen + char
        if seen in self._openings:
            self._begin(seen)
        elif any(o.startswith(seen) for o in self._openings):
            self._seen = seen
        elif self._seen:
            self._emit(self._seen)
            self._seen = ""
            self._take_text(char)
        else:
            self._emit(char)

    def _begin(self, opening: str) -> None:
        self._seen, self._scanner, self._is_marked = "", JsonScanner(), opening != "{"
        if self._is_marked:
            self._held.append(opening)
        else:
            self._take_json(opening)

    def _take_json(self, char: str) -> None:
        assert self._scanner is not None
        if not self._json and not self._head and char in WHITESPACE:
            self._held.append(char)
            return
        if not self._json and self._is_head(char):
            self._held.append(char)
            self._head += char
            return
        scan = self._scanner.take(char)
        if scan is Scan.BAD:
            self._give_up()
            self._take_text(char)
            return
        self._held.append(char)
        self._json.append(char)
        if scan is Scan.DONE:
            # A marker that is a special token belongs, inside a string, to the string.
            text = SURROGATE.sub(lambda found: self._markers()[ord(found[0]) - FIRST_PRIVATE], "".join(self._json))
            self._found = self._calls_in(text)
            if self._found is None:
                self._give_up()
            elif not self._closings or not self._is_marked:
                self._complete()

    def _is_head(self, char: str) -> bool:
        """Whether a character before a call's JSON belongs to it."""
        return False

    def _calls_in(self, text: str) -> Calls | None:
        """The calls that a complete object or array makes, if it does."""
        return read_calls(text, self.tools, strict=not self._is_marked)

    def _take_end(self, char: str) -> None:
        """White space and the closing marker, or the next opening one."""
        seen = self._seen + char
        if seen in self._closings:
            self._complete()
        elif seen in self._openings:
            self._complete()
            self._begin(seen)
        elif any(m.startswith(seen) for m in self._closings | self._openings):
            self._seen = seen
        elif not self._seen and char in WHITESPACE:
            self._held.append(char)
        else:  # something else: it was no call
            self._held.append(self._seen)
            self._give_up()
            self._take_text(char)

    def _emit(self, text: str) -> None:
        if self._gap is not None and is_text(text):
            if text in (self.between if self.num_calls else WHITESPACE):
                self._gap.append(text)
                return
            self._content += self._gap
            self._gap = None
        self._content += text

    def _give_up(self) -> None:
        """What is held is content."""
        for part in self._held:
            self._emit(part)
        self._reset()

    def _complete(self) -> None:
        assert self._found is not None
        found = self._found if self.max_calls is None else self._found[: self.max_calls - self.num_calls]
        self._calls += found
        self.num_calls += len(found)
        self._gap = []
        self._reset()

    def _reset(self) -> None:
        self._held, self._json, self._head, self._seen, self._scanner, self._found = [], [], "", "", None, None

    def _finish(self) -> None:
        if self._found is not None:
            self._complete()
        seen = self._seen
        self._give_up()  # a call that was cut short is only text
        for char in seen:
            self._emit(char)
        if self._gap and not self.num_calls:
            self._content += self._gap
        self._gap = None


class HermesParser(ToolParser):
    """`<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen2.5 and many others."""

    openings = ("<tool_call>",)
    closing = "</tool_call>"


class MistralParser(ToolParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": ...}]`, and `[TOOL_CALLS]name[ARGS]{...}` of later models."""

    openings = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")
    most_head = 256
    """Characters of a name and its markers."""

    def _is_head(self, char: str) -> bool:
        belongs = re.match(r"[\w.-]", char) is not None or char in self._privates(self.inner)
        return len(self._head) < self.most_head and (belongs or (self._head != "" and char in "[]" + WHITESPACE))

    def _calls_in(self, text: str) -> Calls | None:
        if not self._head:
            return super()._calls_in(text)
        call_id, arguments = (
            f"(?:{re.escape(m)}|{p})" for m, p in zip(self.inner, self._privates(self.inner), strict=True)
        )
        match = re.fullmatch(rf"([\w.-]+)(?:{call_id}\w*)?{arguments}?\s*", self._head)
        read = read_arguments(text)
        return None if match is None or read is None else [(match[1], read)]


class LlamaParser(ToolParser):
    """`{"name": ..., "parameters": ...}`, alone or after `<|python_tag|>`, `;` between several: Llama 3."""

    openings = ("<|python_tag|>",)
    bare = True
    between = WHITESPACE + ";"


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


def read_forced(request: ChatRequest, text: str) -> Calls:
    """The calls that a forced answer makes: of an answer that was cut short, those that are complete."""
    if isinstance(request.tool_choice, NamedTool):
        return [(request.tool_choice.function.name, text)]
    found, item, scanner = Calls(), list[str](), JsonScanner()
    for char in text.lstrip(WHITESPACE).removeprefix("["):
        if not item and char in WHITESPACE + ",":
            continue
        item.append(char)
        scan = scanner.take(char)
        if scan is Scan.DONE:
            try:
                value = json.loads("".join(item), parse_float=finite)
                found.append((value["name"], value["parameters"]))
            except (ValueError, LookupError, TypeError):
                break
            item, scanner = [], JsonScanner()
        elif scan is Scan.BAD:
            break
    return found
