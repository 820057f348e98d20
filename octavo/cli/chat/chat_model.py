"""What a conversation is with: a model in this process, or one behind a server."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.server.answer_events import Event

Message = dict[str, Any]
"""With role and content: text, or a list of text parts and media, {"type": kind, "path": file}."""


@dataclass(frozen=True)
class AnswerEnd:
    """An answer has come to its end."""

    reason: str | None
    """As in OpenAI's answers: stop, length, tool_calls."""
    output_tokens: int
    seconds: float
    """From the request to here."""
    prompt_tokens: int | None = None
    """None where that is not known."""

    @property
    def used(self) -> int | None:
        """Tokens of the context that the conversation takes now."""
        return None if self.prompt_tokens is None else self.prompt_tokens + self.output_tokens


Piece = Event | AnswerEnd | None
"""What comes of an answer; None where nothing new has come, for who wants to stop it meanwhile."""
Pieces = Generator[Piece, None, None]


class ChatModel(Protocol):
    """Answers conversations. Errors are those of octavo.errors."""

    @property
    def name(self) -> str: ...

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together; None where that is not known."""
        ...

    @property
    def media_kinds(self) -> Sequence[str]:
        """What messages may hold beside text: image, video, audio."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Sampling values, as SamplingParams calls them, where the user gives none."""
        ...

    @property
    def is_polled(self) -> bool:
        """Whether pieces come so often, if only as None, that it is enough to stop between two of them."""
        ...

    @property
    def adapters(self) -> Mapping[str, str]:
        """Paths of the adapters that can answer, by their names."""
        ...

    @property
    def adapter(self) -> str | None:
        """The one that answers."""
        ...

    def choose_adapter(self, name: str | None) -> None:
        """Have an adapter of `adapters` answer from now on, or the model alone."""
        ...

    def facts(self) -> dict[str, str]:
        """What there is to know about the model, by what it is called."""
        ...

    def check_media(self, paths: Mapping[str, Sequence[str]]) -> None:
        """Raises InvalidRequestError for files by kind that cannot all be in a conversation."""
        ...

    def answer(self, messages: Sequence[Message], values: Mapping[str, Any], thinks: bool | None) -> Pieces:
        """The answer to a conversation, as it comes; closing the generator ends it.

        Args:
            values: sampling values that the user has set.
            thinks: whether the model is to think first; None as it likes.
        """
        ...

    def load(self, name: str) -> None:
        """Have another model answer from now on. If it cannot, this one stays."""
        ...

    def close(self) -> None: ...
