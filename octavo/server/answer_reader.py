"""Reads answers of chats: what is thought, said and called, in the formats of a model."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

from octavo.params import StructuredOutputsParams
from octavo.server.forced_calls import ForcedParser, forced, forced_arguments, only_tool
from octavo.server.harmony import MARKERS, HarmonyParser
from octavo.server.markers import shown_tokens
from octavo.server.model_formats import AnswerParser, AnswerReader, ModelFormats
from octavo.server.preambles import harmony_preamble, reasoning_preamble
from octavo.server.protocol import ChatRequest
from octavo.server.reasoning import ReasoningParser
from octavo.server.tool_calls import new_id
from octavo.server.tool_parser import ToolParser
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")


@functools.cache
def _tell_guess() -> None:
    log.info(
        "the format of this model's tool calls is unknown; they are read as Hermes writes them. "
        "--tool-call-parser sets another."
    )


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
