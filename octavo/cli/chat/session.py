"""`octavo chat`: a conversation in the terminal, with a model here or behind a server."""

import argparse
import dataclasses
import os
import sys

from octavo.cli.chat.chat_commands import LeaveError, carry_out
from octavo.cli.chat.chat_model import ChatModel
from octavo.cli.chat.chat_view import PlainView, View
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.message_input import LineReader, Reader
from octavo.cli.chat.turns import Turns
from octavo.cli.flags import SAMPLING_FLAGS, adapters_of, check_sampling_flags, engine_args_of, take_model
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError, OctavoError

GREETING = "Talk to the model; /help lists the commands."
LEAVING = "(Ctrl-C again, Ctrl-D or /quit leaves)"


def converse(turns: Turns, reader: Reader) -> None:
    """Take messages until there are no more, or the user leaves: by a command, or by Ctrl-C twice."""
    was_pressed = False
    while True:
        try:
            message = reader.read()
            if message is None:
                return
            was_pressed = False
            if message.strip():
                _take(turns, message)
                was_pressed = turns.was_stopped
        except LeaveError:
            return
        except KeyboardInterrupt:
            if was_pressed:
                return
            was_pressed = True
            turns.view.note(LEAVING)


def _take(turns: Turns, message: str) -> None:
    turns.was_stopped = False
    try:
        if message.startswith("/"):
            carry_out(turns, message)
        else:
            turns.say(message.strip())
    except OctavoError as error:
        turns.view.fail(str(error))


def run(namespace: argparse.Namespace) -> int:
    """Converse by the flags of `octavo chat`; 1 where something failed that nobody was there to see."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    view: View = _terminal_view(namespace) if is_terminal else PlainView()
    values = {name: value for name, value in vars(namespace).items() if name in SAMPLING_FLAGS}
    model = _model(namespace, view)
    try:
        turns = Turns(Conversation(model, values, namespace.system), view)
        if namespace.quick is not None:
            turns.say(namespace.quick)
        elif is_terminal:
            view.note(f"{model.name}. {GREETING}")
            converse(turns, _prompt_reader(turns, namespace.history))
        else:
            converse(turns, LineReader(sys.stdin, _ask if sys.stdin.isatty() else lambda goes_on: None))
    finally:
        model.close()
    return int(view.has_failed and (not is_terminal or namespace.quick is not None))


def _model(namespace: argparse.Namespace, view: View) -> ChatModel:
    """Who answers. What only this command's terminal needs is imported as it is needed."""
    take_model(namespace, namespace.served)
    if namespace.url is not None:
        from octavo.cli.chat.remote_chat import RemoteChat

        check_sampling_flags(namespace)
        _check_remote(namespace)
        with view.working(f"asking {namespace.url}"):
            return RemoteChat(namespace.url, getattr(namespace, "model", None), namespace.api_key)
    from octavo.cli.chat.local_chat import LocalChat, fetch

    if namespace.api_key is not None:
        raise InvalidRequestError("--api-key is for a server: give --url as well, or leave it out.")
    check_sampling_flags(namespace)
    args = engine_args_of(namespace)
    adapters = adapters_of(namespace)
    fetch(args)  # downloads have bars of their own
    with view.working(f"loading {args.model}"):
        return LocalChat(args, adapters)


def _check_remote(namespace: argparse.Namespace) -> None:
    """Raises InvalidRequestError for options of an engine, which a server has already."""
    given = [f.name for f in dataclasses.fields(EngineArgs) if f.name != "model" and hasattr(namespace, f.name)]
    given += ["lora"] if getattr(namespace, "lora", None) else []
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise InvalidRequestError(f"{flag} has no effect with --url: the server has its model already. Leave it out.")


def _terminal_view(namespace: argparse.Namespace) -> View:
    from rich.console import Console

    from octavo.cli.chat.terminal_view import TerminalView

    return TerminalView(Console(highlight=False, emoji=False, markup=False), namespace.markdown)


def _prompt_reader(turns: Turns, has_history: bool) -> Reader:
    from octavo.cli.chat.input_history import InputHistory, history_file
    from octavo.cli.chat.prompt_reader import PromptReader

    def toolbar() -> str:
        return f"{turns.talk.model.name}{turns.context()}"

    return PromptReader(turns.talk, InputHistory(history_file() if has_history else None), toolbar)


def _ask(goes_on: bool) -> None:
    print(". " if goes_on else "> ", end="", file=sys.stderr, flush=True)
