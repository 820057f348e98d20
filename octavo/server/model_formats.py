"""In which formats a model answers, and what reads them: thoughts, text, calls."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.server import reasoning_formats, tool_formats
from octavo.server.answer_events import Event, Text
from octavo.server.markers import visible
from octavo.server.reasoning_formats import ReasoningFormat
from octavo.server.tool_parser import ToolFormat, joined

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
