"""Messages as they are typed in a terminal: editing, paste, history, completion."""

from collections.abc import Callable, Iterable
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.styles import Style

from octavo.cli.chat.completing import candidates, common_beginning
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.input_history import InputHistory
from octavo.cli.chat.message_input import goes_on, message_of

STYLE = {"bottom-toolbar": "noreverse fg:ansibrightblack", "prompt": "bold"}


class PromptReader:
    """Asks for messages.

    Args:
        talk: what completion goes by.
        history: what the arrow keys go through.
        toolbar: called for the line below.
    """

    def __init__(self, talk: Conversation, history: InputHistory, toolbar: Callable[[], str]) -> None:
        self._session: Any = PromptSession(
            history=_History(history),
            completer=_Completer(talk),
            complete_while_typing=True,
            multiline=True,
            prompt_continuation=lambda width, number, is_wrapped: ". ",
            key_bindings=_keys(talk),
            enable_open_in_editor=True,
            enable_suspend=True,
            bottom_toolbar=toolbar,
            style=Style.from_dict(STYLE),
            reserve_space_for_menu=5,
        )

    def read(self) -> str | None:
        try:
            return message_of(self._session.prompt(ANSI("> ")))
        except EOFError:
            return None


def _keys(talk: Conversation) -> Any:
    """Enter sends what is complete; what was pasted is in the line as it came, whatever lines it has."""
    keys = KeyBindings()

    def send(event: Any) -> None:
        buffer = event.current_buffer
        if not goes_on(buffer.document.text_before_cursor) or buffer.document.text_after_cursor.strip():
            buffer.validate_and_handle()
            return
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
        buffer.insert_text("\n")

    def go_on(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    def complete(event: Any) -> None:
        """At once, so that Enter may follow as quickly as fingers can."""
        buffer = event.current_buffer
        found = list(candidates(buffer.document.text_before_cursor, talk))
        if buffer.complete_state and len(found) > 1:
            buffer.complete_next()
        elif found:
            typed = buffer.document.text_before_cursor[-found[0].replaces :] if found[0].replaces else ""
            common = common_beginning([one.text for one in found])
            if common != typed:
                buffer.delete_before_cursor(len(typed))
                buffer.insert_text(common)
            if len(found) > 1:
                buffer.start_completion(select_first=False)

    keys.add("tab")(complete)
    keys.add("enter")(send)
    keys.add("escape", "enter")(go_on)
    return keys


class _Completer(Completer):  # type: ignore[misc]
    """Candidates in prompt_toolkit's words."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def get_completions(self, document: Any, event: Any) -> Iterable[Any]:
        for one in candidates(document.text_before_cursor, self._talk):
            yield Completion(one.text, start_position=-one.replaces, display_meta=one.about)


class _History(History):  # type: ignore[misc]
    """An InputHistory in prompt_toolkit's words."""

    def __init__(self, kept: InputHistory) -> None:
        super().__init__()
        self._kept = kept

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._kept.entries)

    def store_string(self, string: str) -> None:
        self._kept.add(string)
