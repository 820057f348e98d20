"""`octavo chat`: a conversation in the terminal."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.cli.answers import limit_hit, stream_answer
from octavo.cli.flags import (
    SAMPLING_FLAGS,
    adapters_of,
    check_sampling_flags,
    engine_args_of,
    flag_type,
    sampling_values_of,
)
from octavo.cli.media_files import Parts, media_part
from octavo.client.local_client import LocalRequests
from octavo.config import MEDIA_KINDS
from octavo.engine.engine import Engine
from octavo.errors import InvalidRequestError, OctavoError, did_you_mean
from octavo.launch import launch_engine
from octavo.lora import LoRARequest
from octavo.media.fetch import MediaFetcher
from octavo.media.items import read_media
from octavo.params import SamplingParams
from octavo.text.media_chat import media_chat_prompt
from octavo.text.template import text_part

HELP = """\
/help            these commands
/reset           forget the conversation
/system TEXT     set the system message, and begin anew
/set NAME VALUE  change a sampling value, for example /set temperature 0.7
/image FILE      send a picture with the next message (also /video, /audio), for models that take it
/lora NAME       answer with another adapter of --lora, or with none (/lora off); /lora lists them
/retry           answer the last message again
/history         the conversation so far
/save PATH       write the conversation to a JSON file
/load PATH       go on with a conversation from a file
/quit            end (or Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on."""


class Conversation:
    """Messages, and what may be done with them."""

    def __init__(
        self, engine: Engine, sampling: dict[str, Any], system: str | None, adapters: Sequence[LoRARequest] = ()
    ) -> None:
        if engine.tokenizer is None or not engine.tokenizer.chat_templates:
            raise InvalidRequestError("this model has no chat template; use `octavo generate --raw`.")
        self.requests, self.tokenizer, self.media = LocalRequests(engine), engine.tokenizer, engine.checker.media
        self.sampling, self.params = sampling, SamplingParams(**sampling)
        self.system = system
        self.adapters = {adapter.lora_name: adapter for adapter in adapters}
        self.adapter = next(iter(adapters), None)
        """Which one answers; the model alone if None."""
        self.messages: list[dict[str, Any]] = []
        self.attached: Parts = []
        """Media of the next message, by their files' names: {"type": kind, "path": name}."""

    def say(self, text: str) -> None:
        """The next message, with what is attached, and its answer. One that cannot be answered is not kept."""
        attached, self.attached = self.attached, []
        self.messages.append({"role": "user", "content": [*attached, text_part(text)] if attached else text})
        before = len(self.messages)
        try:
            self.answer()
        except OctavoError:
            del self.messages[before - 1 :]
            raise

    def attach(self, kind: str, path: str) -> None:
        """Send a file with the next message. Raises InvalidRequestError for one that the model does not take."""
        if self.media is None:
            raise InvalidRequestError("this model takes text only.")
        part = {"type": kind, "path": str(Path(path).expanduser().absolute())}
        paths = [p for m in self.messages if isinstance(m["content"], list) for p in m["content"] if p["type"] == kind]
        self.media.check({kind: [*paths, *(p for p in self.attached if p["type"] == kind), part]})
        read_media({kind: [media_part(kind, part["path"])[kind]]})
        self.attached.append(part)

    def _all(self) -> list[dict[str, Any]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def answer(self) -> None:
        """Stream the answer to the last message; what came before Ctrl-C is kept."""
        prompt = media_chat_prompt(self.tokenizer, [_loaded(m) for m in self._all()], self.media, MediaFetcher())
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()

        try:
            answer = stream_answer(self.requests, prompt, self.params, show, self.adapter)
            count, seconds = answer.token_counts[0], answer.seconds
            if (cut := answer.cut_at(0)) is not None:
                reason = limit_hit(cut, self.params, "/set max_tokens", "--max-model-len")
                print(f"\n[cut after {cut} tokens{reason}]", end="")
            print(f"\n\033[2m[{count} tokens, {count / seconds:.0f} a second]\033[0m" if sys.stdout.isatty() else "")
        except KeyboardInterrupt:
            print("\n[stopped]")
        else:
            answer.check()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def set_value(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name not in SAMPLING_FLAGS:
            raise InvalidRequestError(f"there is no sampling value {name!r}.{did_you_mean(name, SAMPLING_FLAGS)}")
        kind = flag_type(SAMPLING_FLAGS[name].type)
        try:
            sampling = {**self.sampling, name: [value] if kind is list else kind(value)}
            self.sampling, self.params = sampling, SamplingParams(**sampling)
        except ValueError as error:
            raise InvalidRequestError(f"/set {name} {value}: {error}") from error

    def choose_adapter(self, name: str) -> None:
        """Have an adapter answer from now on, or none; list them where no name is given."""
        if name and name != "off" and name not in self.adapters:
            known = ("off", *self.adapters)
            hint = did_you_mean(name, known) or " Start with --lora NAME=PATH."
            raise InvalidRequestError(f"there is no adapter {name!r}.{hint}")
        if name:
            self.adapter = None if name == "off" else self.adapters[name]
            return
        for known_name, adapter in self.adapters.items():
            print(f"{'*' if adapter is self.adapter else ' '} {known_name}: {adapter.lora_path}")
        if not self.adapters:
            print("there are no adapters; start with --lora PATH.")

    def save(self, path: str) -> None:
        try:
            Path(path).write_text(json.dumps(self._all(), indent=2, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise InvalidRequestError(f"{path} cannot be written: {error}") from error

    def load(self, path: str) -> None:
        try:
            messages = json.loads(Path(path).read_text(encoding="utf-8"))
            rest = [{"role": str(m["role"]), "content": _saved_content(m["content"])} for m in messages]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequestError(f"{path} is not a saved conversation: {error}") from error
        self.system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else None
        self.messages = rest

    def command(self, line: str) -> bool:
        """Carry out a /command; False to end."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        if name in ("quit", "exit"):
            return False
        if name == "help":
            print(HELP)
        elif name in MEDIA_KINDS:
            self.attach(name, argument)
        elif name == "reset":
            self.messages, self.attached = [], []
        elif name == "system":
            self.system, self.messages = argument or None, []
        elif name == "set":
            self.set_value(argument)
        elif name == "lora":
            self.choose_adapter(argument)
        elif name == "retry":
            while self.messages and self.messages[-1]["role"] == "assistant":
                self.messages.pop()
            if self.messages:
                self.answer()
        elif name == "history":
            for message in self._all():
                print(f"{message['role']}: {_shown(message['content'])}")
        elif name in ("save", "load"):
            (self.save if name == "save" else self.load)(argument)
        else:
            known = ("help", "reset", "system", "set", "lora", "retry", "history", "save", "load", "quit", *MEDIA_KINDS)
            raise InvalidRequestError(f"there is no command /{name}.{did_you_mean(name, known)} /help lists them.")
        return True


def _loaded(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its files' bytes."""
    if isinstance(message["content"], str):
        return message
    parts = [media_part(p["type"], p["path"]) if p["type"] in MEDIA_KINDS else p for p in message["content"]]
    return {**message, "content": parts}


def _shown(content: Any) -> str:
    """A message's content as text, with files by their names."""
    if isinstance(content, str):
        return content
    return " ".join(f"[{p['type']} {p['path']}]" if p["type"] in MEDIA_KINDS else p["text"] for p in content)


def _saved_content(content: Any) -> Any:
    """The content of a saved message. Raises ValueError, KeyError or TypeError for what is none."""
    if isinstance(content, str):
        return content
    return [
        {"type": p["type"], "path": str(p["path"])} if p["type"] in MEDIA_KINDS else text_part(str(p["text"]))
        for p in content
    ]


def _read_message() -> str | None:
    """A line, or several joined where they end in a backslash; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input("> " if not lines else ". ")
        except EOFError:
            return None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines).strip()


def run(namespace: argparse.Namespace) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    check_sampling_flags(namespace)
    # One conversation has one request at a time.
    engine = launch_engine(dataclasses.replace(engine_args_of(namespace), data_parallel_size=1))
    sampling = sampling_values_of(namespace, engine.info.generation_config)
    talk = Conversation(engine, sampling, namespace.system, adapters_of(namespace))
    print("Talk to the model; /help lists the commands.")
    while True:
        try:
            message = _read_message()
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends the conversation)")
            continue
        if message is None:
            print()
            return 0
        if not message:
            continue
        try:
            if message.startswith("/"):
                if not talk.command(message):
                    return 0
                continue
            talk.say(message)
        except OctavoError as error:
            print(f"octavo: {error}")
