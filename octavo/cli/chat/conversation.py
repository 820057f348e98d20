"""A conversation: its messages, and what goes with the next of them. It knows no terminal."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.cli.chat.chat_model import AnswerEnd, ChatModel, Message, Pieces
from octavo.cli.chat.sampling_values import checked, with_value
from octavo.config import MEDIA_KINDS
from octavo.errors import InvalidRequestError, OctavoError, did_you_mean
from octavo.media.limits import DEFAULT_LIMITS
from octavo.media.sources import read_media_file
from octavo.server.answer_events import CallArguments, CallBegin, CallBroken, CallEnd, Text
from octavo.text.text_files import fenced

FILE_BYTES = 1 << 20
"""Of a text file that is sent with a message."""
SAVED_BYTES = 64 << 20
"""Of a saved conversation."""


class Conversation:
    """Messages with a model, and its answers.

    Args:
        model: who answers.
        values: sampling values that the user has set.
        system: what stands before the messages.
    """

    def __init__(self, model: ChatModel, values: Mapping[str, Any] | None = None, system: str | None = None) -> None:
        self.model, self.system = model, system
        self.values = dict(values or {})
        self.messages: list[Message] = []
        self.attached: list[dict[str, str]] = []
        """Parts of the next message: texts of files, and media by their paths."""
        self.thinks: bool | None = None
        self.used: int | None = None
        """Tokens of the context that are in use; None where that is not known."""
        checked(self.values, model.defaults)

    def say(self, text: str) -> Pieces:
        """Send a message with what is attached; its answer. One that nothing comes of is not kept."""
        parts, self.attached = [*self.attached, {"type": "text", "text": text}], []
        if all(part["type"] == "text" for part in parts):
            content: Any = "\n\n".join(part["text"] for part in parts)
        else:
            content = parts
        before = len(self.messages)
        self.messages.append({"role": "user", "content": content})
        try:
            yield from self.answer()
        except OctavoError:
            if len(self.messages) == before + 1:
                del self.messages[before:]
                self.attached = parts[:-1]
            raise

    def answer(self) -> Pieces:
        """The answer to the messages. What has come of it is kept, also if it is stopped or fails."""
        said: list[str] = []
        try:
            for piece in self.model.answer(self.all_messages(), self.values, self.thinks):
                said.append(_as_said(piece))
                if isinstance(piece, AnswerEnd):
                    self.used = piece.used
                yield piece
        except OctavoError:
            if any(said):
                self._keep(said)
            raise
        except BaseException:  # it was stopped
            self._keep(said)
            raise
        self._keep(said)

    def retry(self) -> Pieces:
        """Another answer to the last message. Raises InvalidRequestError where there is none."""
        kept = list(self.messages)
        while kept and kept[-1]["role"] == "assistant":
            kept.pop()
        if not kept:
            raise InvalidRequestError("there is no message to answer again.")
        self.messages = kept
        return self.answer()

    def _keep(self, said: list[str]) -> None:
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def all_messages(self) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def begin_anew(self) -> None:
        """Forget the messages."""
        self.messages, self.attached, self.used = [], [], None

    def set_value(self, text: str) -> None:
        """Set a sampling value, as `/set` has it."""
        self.values = with_value(self.values, text, self.model.defaults)

    def load_model(self, name: str) -> None:
        """Go on with another model. Raises OctavoError, and keeps this one, where it cannot be had."""
        self.model.load(name)
        self.used = None
        try:
            checked(self.values, self.model.defaults)
        except InvalidRequestError:
            self.values = {}

    def attach(self, kind: str, path: str) -> None:
        """Send a picture, a film or a sound with the next message. Raises InvalidRequestError where that cannot be."""
        if kind not in self.model.media_kinds:
            takes = ", ".join(self.model.media_kinds) or "text only"
            raise InvalidRequestError(f"{self.model.name} takes no {kind}; it takes {takes}.")
        part = {"type": kind, "path": str(_path(path))}
        paths: dict[str, list[str]] = {}
        contents = [m["content"] for m in self.messages if isinstance(m["content"], list)]
        for one in [p for content in contents for p in content] + self.attached + [part]:
            if one["type"] in MEDIA_KINDS:
                paths.setdefault(one["type"], []).append(one["path"])
        self.model.check_media(paths)
        self.attached.append(part)

    def attach_text(self, path: str) -> int:
        """Send a text file with the next message; its length. Raises InvalidRequestError for what is none."""
        file = _path(path)
        limits = dataclasses.replace(DEFAULT_LIMITS, max_bytes=FILE_BYTES)
        try:
            text = read_media_file(file, limits, "the file").decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"{file} is no UTF-8 text. /image, /audio and /video send other files."
            ) from error
        self.attached.append({"type": "text", "text": fenced(file.name, text)})
        return len(text)

    def choose_adapter(self, name: str) -> None:
        """Have an adapter answer, or none (`off`). Raises InvalidRequestError for an unknown one."""
        known = ("off", *self.model.adapters)
        if name not in known:
            hint = did_you_mean(name, known) or " Start with --lora NAME=PATH."
            raise InvalidRequestError(f"there is no adapter {name!r}.{hint}")
        self.model.choose_adapter(None if name == "off" else name)

    def save(self, path: str) -> None:
        """Write the messages to a JSON file."""
        try:
            _path(path).write_text(json.dumps(self.all_messages(), indent=2, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.") from error

    def restore(self, path: str) -> None:
        """Go on with a saved conversation."""
        try:
            limits = dataclasses.replace(DEFAULT_LIMITS, max_bytes=SAVED_BYTES)
            rest = [_saved(m) for m in json.loads(read_media_file(_path(path), limits, "the conversation"))]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error if isinstance(error, InvalidRequestError) else f"{type(error).__name__}: {error}"
            raise InvalidRequestError(f"{path} is not a saved conversation: {reason}") from error
        self.begin_anew()
        self.system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else None
        self.messages = rest


def is_saved_conversation(path: str) -> bool:
    """Whether there is a file that begins as a saved conversation does."""
    try:
        file = _path(path)
        if not file.is_file():
            return False
        with open(file, "rb") as begin:
            return file.suffix == ".json" or begin.read(1) == b"["
    except (OSError, ValueError):
        return False


def as_text(content: Any) -> str:
    """A message's content as text, with files by their names."""
    if isinstance(content, str):
        return content
    return " ".join(f"[{p['type']} {p['path']}]" if p["type"] in MEDIA_KINDS else p["text"] for p in content)


def _path(path: str) -> Path:
    if not path.strip():
        raise InvalidRequestError("name a file.")
    return Path(path.strip()).expanduser().absolute()


def _as_said(piece: Any) -> str:
    """What of an answer the model is told later that it has said."""
    match piece:
        case Text(text) | CallArguments(text):
            return text
        case CallBegin(name, _):
            return f"{name}("
        case CallEnd():
            return ")"
        case CallBroken(_, rest):
            return rest
    return ""


def _saved(message: Any) -> Message:
    """A saved message. Raises ValueError, KeyError or TypeError for what is none."""
    content = message["content"]
    if not isinstance(content, str):
        content = [
            {"type": p["type"], "path": str(p["path"])}
            if p["type"] in MEDIA_KINDS
            else {"type": "text", "text": str(p["text"])}
            for p in content
        ]
    return {"role": str(message["role"]), "content": content}
