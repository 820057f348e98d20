"""A model that says what it is told to, for tests of conversations."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.cli.chat.chat_model import AnswerEnd, ChatModel, Message, Piece, Pieces
from octavo.cli.chat.chat_view import PlainView
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.message_input import LineReader
from octavo.cli.chat.session import converse
from octavo.cli.chat.turns import Turns
from octavo.errors import ModelNotFoundError
from octavo.server.answer_events import Text


class ScriptedModel:
    """Answers with what `script` makes of each conversation.

    Args:
        script: gives pieces, and may raise.
    """

    is_polled = True
    context_length: int | None = 100
    media_kinds: Sequence[str] = ("image",)

    def __init__(self, script: Callable[[Sequence[Message]], Sequence[Piece | BaseException]] | None = None) -> None:
        self.name = "scripted"
        self.script = script or (lambda messages: [Text(f"answer {len(messages)}")])
        self.defaults: Mapping[str, Any] = {"temperature": 0.6, "top_k": 7}
        self.asked: list[tuple[list[Message], dict[str, Any], bool | None]] = []
        self.adapters: Mapping[str, str] = {"poems": "/adapters/poems"}
        self.adapter: str | None = None
        self.media: Mapping[str, Sequence[str]] = {}
        self.was_closed = False

    def choose_adapter(self, name: str | None) -> None:
        self.adapter = name

    def facts(self) -> dict[str, str]:
        return {"takes": "text"}

    def check_media(self, paths: Mapping[str, Sequence[str]]) -> None:
        self.media = paths

    def answer(self, messages: Sequence[Message], values: Mapping[str, Any], thinks: bool | None) -> Pieces:
        self.asked.append((list(messages), dict(values), thinks))
        count = 0
        for piece in self.script(messages):
            if isinstance(piece, BaseException):
                raise piece
            count += isinstance(piece, Text)
            yield piece
        yield AnswerEnd("stop", count, 0.5, 10 * len(messages))

    def load(self, name: str) -> None:
        if name == "missing":
            raise ModelNotFoundError("missing was not found.")
        self.name = name

    def close(self) -> None:
        self.was_closed = True


class Talk:
    """A conversation by lines, and what is printed."""

    def __init__(self, model: ChatModel | None = None, **options: Any) -> None:
        self.model: Any = model or ScriptedModel()
        self.out, self.err = io.StringIO(), io.StringIO()
        self.conversation = Conversation(self.model, **options)
        self.turns = Turns(self.conversation, PlainView(self.out, self.err))

    def type(self, text: str) -> tuple[str, str]:
        """What lines print, on standard output and on standard error."""
        for file in (self.out, self.err):
            file.seek(0)
            file.truncate()
        converse(self.turns, LineReader(io.StringIO(text)))
        return self.out.getvalue(), self.err.getvalue()
