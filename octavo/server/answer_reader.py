"""Reads answers of chats: what is thought, said and called, in the formats of a model."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.params import StructuredOutputsParams
from octavo.server import reasoning_formats, tool_formats
from octavo.server.answer_events import Event, Text
from octavo.server.forced_calls import ForcedParser, forced, forced_arguments, only_tool
from octavo.server.harmony import MARKERS, HarmonyParser
from octavo.server.markers import shown_tokens, visible
from octavo.server.preambles import harmony_preamble, reasoning_preamble
from octavo.server.protocol import ChatRequest
from octavo.server.reasoning import ReasoningParser
from octavo.server.reasoning_formats import ReasoningFormat
from octavo.server.tool_calls import new_id
from octavo.server.tool_parser import ToolFormat, ToolParser, joined
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")
GUESS = "hermes"
"""The format of calls that most models know, for those of which nothing is known."""


@dataclass(frozen=True)
class ModelFormats:
    """In which formats a model answers.

    Args:
        is_harmony: it writes thoughts and calls as messages of their own, whatever else is said here.
        reasoning: how it writes thoughts; None where it writes none.
            tools: how it writes calls; None where they are not looked for.
        is_guess: nothing tells how it writes calls.
    """

    is_harmony: bool
    reasoning: ReasoningFormat | None
    tools: ToolFormat | None
    is_guess: bool = False


@functools.lru_cache(maxsize=16)
def model_formats(reasoning_parser: str, tool_parser: str, templates: tuple[str, ...]) -> ModelFormats:
    """The formats that the server's options name; `auto` goes by what the chat templates write.

    Where they tell of no format of calls that is known, it is Hermes'.
    """
    reasoning = reasoning_formats.format_of(templates) if reasoning_parser == "auto" else reasoning_parser
    tools = tool_formats.format_of(templates) if tool_parser == "auto" else tool_parser
    is_harmony = reasoning == reasoning_formats.HARMONY or tools == tool_formats.HARMONY
    return ModelFormats(
        is_harmony,
        reasoning_formats.FORMATS.get(reasoning or "none"),
        None if is_harmony else tool_formats.named_format(tools or GUESS),
        is_guess=tools is None and not is_harmony,
    )


@functools.cache
def _tell_guess() -> None:
    log.info(
        "the format of this model's tool calls is unknown; they are read as Hermes writes them. "
        "--tool-call-parser sets another."
    )


class AnswerParser(Protocol):
    """What gives events of an answer's text."""

    def feed(self, text: str, finished: bool) -> list[Event]: ...


class AnswerReader:
    """Reads one answer: first what is thought, then what of the rest is called.

    Args:
        parsers: each reads the text that the one before it leaves. Without any, all is text.
    """

    def __init__(self, parsers: Sequence[AnswerParser]) -> None:
        self._parsers = parsers

    def feed(self, text: str, finished: bool) -> list[Event]:
        """What is certain now."""
        events: list[Event] = [Text(text)] if text else []
        for parser in self._parsers:
            rest, others = "", list[Event]()
            for event in events:
                if isinstance(event, Text):
                    rest += event.text
                else:
                    others.append(event)
            events = [*others, *parser.feed(rest, finished)]
        shown = (Text(visible(e.text)) if isinstance(e, Text) else e for e in joined(events))
        return [event for event in shown if event != Text("")]


class AnswerReaders:
    """Makes readers of a request's answers.

    Args:
        formats: the model's.
        request: says which tools there are, and which must be called.
    """

    def __init__(self, formats: ModelFormats, request: ChatRequest) -> None:
        self.formats, self.request = formats, request
        asked = bool(request.tools) and request.tool_choice in (None, "auto")
        self.is_forced = request.tool_choice not in (None, "none", "auto")
        self.message_to = only_tool(request) if formats.is_harmony and self.is_forced else None
        """The tool that a message is to, where that is how a call is forced."""
        self.tools = formats.tools if asked else None
        if asked and formats.is_guess:
            _tell_guess()
        those = [self.message_to] if self.message_to is not None else (request.tools or ()) if asked else ()
        self.schemas = {tool.function.name: tool.function.parameters for tool in those}
        self.max_calls = 1 if request.parallel_tool_calls is False else None
        counts = (len(calls) for m in request.messages if isinstance(calls := m.get("tool_calls"), list))
        self._num_earlier = sum(counts)

    def call_id(self, name: str, index: int) -> str:
        """The id of an answer's call by number, where the model wrote none."""
        tools = self.formats.tools
        return (
            f"{tools.numbered}{name}:{self._num_earlier + index}" if tools is not None and tools.numbered else new_id()
        )

    def forced(self) -> StructuredOutputsParams | None:
        """The schema that makes the model call a tool, where it must. Raises InvalidRequestError as `forced` does."""
        found = forced(self.request)
        return found if self.message_to is None else forced_arguments(self.message_to)

    def shown_tokens(self, tokenizer: Tokenizer) -> dict[int, str]:
        """Special tokens that the readers look for, and what stands for them in the text."""
        if self.formats.is_harmony:
            return shown_tokens(tokenizer, MARKERS)
        reasoning, tools = self.formats.reasoning, self.tools
        return shown_tokens(
            tokenizer, [*(() if reasoning is None else reasoning.markers), *(() if tools is None else tools.markers)]
        )

    def preamble(self, prompt: str, variables: Mapping[str, Any], tokenizer: Tokenizer) -> str | None:
        """The grammar of what may come before what follows a schema; None for nothing."""
        if self.formats.is_harmony:
            tool = None if self.message_to is None else self.message_to.function.name
            return harmony_preamble(prompt, tokenizer, tool)
        reasoning = self.formats.reasoning
        return None if reasoning is None else reasoning_preamble(reasoning, prompt, variables, tokenizer)

    def new(self, prompt: str, variables: Mapping[str, Any]) -> AnswerReader:
        """What reads one answer to this prompt, which a chat template wrote with these variables."""
        parsers = list[AnswerParser]()
        if self.formats.is_harmony:
            parsers.append(HarmonyParser(prompt, tuple(self.schemas), self.max_calls))
        elif self.formats.reasoning is not None:
            parsers.append(ReasoningParser(self.formats.reasoning, prompt, variables))
        if self.is_forced and self.message_to is None:
            parsers.append(ForcedParser(self.request))
        elif self.tools is not None:
            parsers.append(ToolParser(self.tools, self.schemas, self.max_calls))
        return AnswerReader(parsers)
