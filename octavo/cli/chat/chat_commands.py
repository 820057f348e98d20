"""The commands of a conversation: one table, from which they are carried out, listed and completed."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from octavo.cli.chat.conversation import as_text, is_saved_conversation
from octavo.cli.chat.sampling_values import listing
from octavo.cli.chat.turns import Turns
from octavo.config import MEDIA_KINDS
from octavo.errors import InvalidRequestError, did_you_mean

NOTES = """\
Lines that are pasted, and what stands between \"\"\" and \"\"\", are one message; a line that ends in \\ goes on,
and so does Alt-Enter. Ctrl-X Ctrl-E opens the line in $EDITOR. Ctrl-C stops an answer, twice leaves; Ctrl-D leaves."""


@dataclass(frozen=True)
class Command:
    """One of them."""

    name: str
    argument: str
    """As /help shows it."""
    help: str
    run: Callable[[Turns, str], None]
    completes: str = ""
    """What its argument is: file, model, value, adapter, or words that it may be."""
    aliases: tuple[str, ...] = ()


class LeaveError(Exception):
    """The conversation is to end."""


def carry_out(turns: Turns, line: str) -> None:
    """Carry out a line that begins with a slash. Raises OctavoError, and LeaveError at the end."""
    name, _, argument = line[1:].partition(" ") if "\n" not in line.partition(" ")[0] else line[1:].partition("\n")
    command = NAMES.get(name)
    if command is None:
        known = f" /help lists them.{' Begin with a space to send a slash.' if '/' in name else ''}"
        raise InvalidRequestError(f"there is no command /{name[:60]}.{did_you_mean(name, NAMES)}{known}")
    command.run(turns, argument.strip())


def _help(turns: Turns, argument: str) -> None:
    width = max(len(f"{c.name} {c.argument}") for c in COMMANDS) + 2
    lines = [f"/{f'{c.name} {c.argument}':{width}}{c.help}" for c in COMMANDS]
    turns.view.tell("\n".join([*lines, NOTES]))


def _leave(turns: Turns, argument: str) -> None:
    raise LeaveError


def _reset(turns: Turns, argument: str) -> None:
    turns.talk.begin_anew()
    turns.view.note("(the conversation begins anew)")


def _system(turns: Turns, argument: str) -> None:
    if not argument:
        turns.view.tell(turns.talk.system or "(there is no system message; /system TEXT sets one)")
        return
    turns.talk.system = None if argument == "off" else argument
    turns.talk.begin_anew()


def _set(turns: Turns, argument: str) -> None:
    if not argument:
        turns.view.tell(listing(turns.talk.values, turns.talk.model.defaults))
        return
    turns.talk.set_value(argument)


def _show(turns: Turns, argument: str) -> None:
    talk, model = turns.talk, turns.talk.model
    context = "-" if talk.used is None else f"{talk.used:,} tokens"
    context += f" of {model.context_length:,}" if model.context_length else ""
    values = ", ".join(f"{k}={v}" for k, v in {**model.defaults, **talk.values}.items())
    facts = {
        "model": model.name,
        **model.facts(),
        "adapter": model.adapter or "-",
        "context": context,
        "messages": str(len(talk.messages)),
        "with the next": ", ".join(p.get("path", p.get("text", "").partition("\n")[0]) for p in talk.attached) or "-",
        "system": talk.system or "-",
        "sampling": values or "as the server has it",
        "thinking": {None: "as the model likes", True: "on", False: "off"}[talk.thinks],
    }
    turns.view.tell("\n".join(f"{name:14}{value}" for name, value in facts.items()))


def _think(turns: Turns, argument: str) -> None:
    if argument in ("on", "off", "default"):
        turns.talk.thinks = {"on": True, "off": False, "default": None}[argument]
    elif argument in ("show", "fold"):
        turns.view.shows_thoughts = argument == "show"
    else:
        raise InvalidRequestError("/think takes on, off or default (whether it thinks), show or fold (what you see).")


def _read(turns: Turns, argument: str) -> None:
    count = turns.talk.attach_text(argument)
    turns.view.note(f"({count:,} characters of {argument} go with the next message)")


def _attach(kind: str) -> Callable[[Turns, str], None]:
    def run(turns: Turns, argument: str) -> None:
        turns.talk.attach(kind, argument)
        turns.view.note(f"({argument} goes with the next message)")

    return run


def _lora(turns: Turns, argument: str) -> None:
    model = turns.talk.model
    if argument:
        turns.talk.choose_adapter(argument)
    elif not model.adapters:
        turns.view.tell("there are no adapters; start with --lora PATH.")
    else:
        marks = {name: "*" if name == model.adapter else " " for name in model.adapters}
        turns.view.tell("\n".join(f"{marks[name]} {name}: {path}" for name, path in model.adapters.items()))


def _load(turns: Turns, argument: str) -> None:
    if not argument:
        raise InvalidRequestError("/load takes a model's name, or the file of a saved conversation.")
    if is_saved_conversation(argument):
        turns.talk.restore(argument)
        turns.view.note(f"({len(turns.talk.messages)} messages of {argument})")
        return
    with turns.view.working(f"loading {argument}"):
        turns.talk.load_model(argument)
    turns.view.note(f"(now with {turns.talk.model.name})")


def _save(turns: Turns, argument: str) -> None:
    turns.talk.save(argument)
    turns.view.note(f"(saved to {argument})")


def _history(turns: Turns, argument: str) -> None:
    lines = [f"{message['role']}: {as_text(message['content'])}" for message in turns.talk.all_messages()]
    turns.view.tell("\n".join(lines) or "(nothing was said yet)")


def _retry(turns: Turns, argument: str) -> None:
    turns.retry()


def _edit(turns: Turns, argument: str) -> None:
    mine = [m["content"] for m in turns.talk.messages if m["role"] == "user" and isinstance(m["content"], str)]
    text = edited(argument or (mine[-1] if mine else ""))
    if text:
        turns.view.note(f"> {text}")
        turns.say(text)
    else:
        turns.view.note("(nothing was sent: the text is empty)")


def edited(text: str) -> str:
    """What the user makes of `text` in $VISUAL or $EDITOR. Raises InvalidRequestError where that fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        file = Path(folder, "message.md")
        file.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)
        except (OSError, ValueError) as error:
            raise InvalidRequestError(f"the editor {editor!r} cannot be started: {error}. Set EDITOR.") from error
        if done.returncode:
            raise InvalidRequestError(f"the editor {editor!r} ended with {done.returncode}; nothing was sent.")
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"what the editor left cannot be read: {error}") from error


COMMANDS = (
    Command("help", "", "these commands", _help, aliases=("?",)),
    Command("reset", "", "forget the conversation", _reset, aliases=("clear", "new")),
    Command("system", "TEXT", "set the system message, and begin anew (off: none)", _system),
    Command("set", "NAME VALUE", "set a sampling value; alone it lists them, with their bounds", _set, "value"),
    Command("show", "", "the model, its settings, and how much of the context is used", _show, aliases=("info",)),
    Command(
        "think", "WORD", "on, off: whether it thinks; show, fold: what you see", _think, "on off default show fold"
    ),
    Command("read", "FILE", "send a text file with the next message", _read, "file"),
    *(
        Command(kind, "FILE", f"send {what} with the next message, to a model that takes it", _attach(kind), "file")
        for kind, what in zip(MEDIA_KINDS, ("a picture", "a film", "a sound"), strict=True)
    ),
    Command("edit", "TEXT", "write a message in $EDITOR; alone, change the last one", _edit),
    Command("retry", "", "answer the last message again", _retry, aliases=("regenerate",)),
    Command("history", "", "the conversation so far", _history),
    Command("save", "FILE", "write the conversation to a JSON file", _save, "file"),
    Command("load", "MODEL or FILE", "go on with another model, or with a saved conversation", _load, "model"),
    Command(
        "lora", "NAME", "answer with another adapter of --lora, or none (off); alone it lists them", _lora, "adapter"
    ),
    Command("quit", "", "leave (or Ctrl-D)", _leave, aliases=("exit", "bye")),
)
NAMES = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
