"""What an answer is made of, as it comes: thoughts, text, and calls of tools."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """Text that it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins; its arguments follow."""

    name: str
    id: str | None = None
    """As the model wrote it, where it did."""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A part of the arguments' JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete."""


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The call that has begun is none: it breaks off, or is not written as calls are.

    Who has not shown it yet takes `text` for it, all that was read of it; who has, `rest`, which no event has told.
    """

    text: str
    rest: str


Event = Thought | Text | CallBegin | CallArguments | CallEnd | CallBroken


@dataclass
class Call:
    """A call of a tool."""

    name: str
    arguments: str
    """JSON text."""
    id: str | None = None


@dataclass
class Answer:
    """An answer as a whole."""

    thought: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)


def collect(events: Iterable[Event]) -> Answer:
    """The answer that all of its events make. A call that is broken is text."""
    thoughts, texts, calls = list[str](), list[str](), list[Call]()
    arguments = list[str]()
    for event in events:
        match event:
            case Thought(text):
                thoughts.append(text)
            case Text(text):
                texts.append(text)
            case CallBegin(name, id):
                calls.append(Call(name, "", id))
                arguments = []
            case CallArguments(text):
                arguments.append(text)
            case CallEnd():
                calls[-1].arguments = "".join(arguments)
            case CallBroken(text, _):
                calls.pop()
                texts.append(text)
    return Answer("".join(thoughts), "".join(texts), calls)
