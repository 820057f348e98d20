"""The turns of a conversation: a message, its answer as it comes, and how it is stopped."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.cli.chat.chat_model import AnswerEnd, Pieces
from octavo.cli.chat.chat_view import View
from octavo.cli.chat.conversation import Conversation
from octavo.errors import OctavoError


@dataclass
class Presses:
    """How often Ctrl-C was pressed."""

    count: int = 0


@contextlib.contextmanager
def presses_of_interrupt(is_polled: bool) -> Iterator[Presses]:
    """Counts Ctrl-C in the block. It raises KeyboardInterrupt from the second on, or, unless polled for, at once.

    What computes an engine's step is not broken off in the middle of it.
    """
    presses = Presses()

    def press(number: int, frame: Any) -> None:
        presses.count += 1
        if presses.count > 1 or not is_polled:
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield presses
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


class Turns:
    """A conversation and where it is shown.

    Args:
        talk: the conversation.
        view: shows it.
    """

    def __init__(self, talk: Conversation, view: View) -> None:
        self.talk, self.view = talk, view
        self.was_stopped = False
        """Whether the last answer was stopped by Ctrl-C."""

    def say(self, text: str) -> None:
        """Send a message and show its answer. Errors are shown."""
        self._show(self.talk.say(text))

    def retry(self) -> None:
        """Show another answer to the last message. Raises InvalidRequestError where there is none."""
        self._show(self.talk.retry())

    def _show(self, pieces: Pieces) -> None:
        """Show an answer. Raises KeyboardInterrupt for a second Ctrl-C."""
        end, error, self.was_stopped = None, None, False
        self.view.begin()
        try:
            with presses_of_interrupt(self.talk.model.is_polled) as presses, contextlib.closing(pieces):
                try:
                    for piece in pieces:
                        if isinstance(piece, AnswerEnd):
                            end = piece
                        self.view.show(piece)
                        if presses.count and end is None:
                            break
                except KeyboardInterrupt:
                    if presses.count != 1:
                        raise
                self.was_stopped = presses.count > 0 and end is None
        except OctavoError as failed:
            error = failed
        finally:
            self.view.end(self._remark(end), "" if end is None else self._numbers(end))
        if error is not None:
            self.view.fail(f"{error}{self._remedy()}")

    def _remark(self, end: AnswerEnd | None) -> str:
        if self.was_stopped:
            return "[stopped]"
        if end is None or end.reason != "length":
            return ""
        most = self.talk.values.get("max_tokens", self.talk.model.defaults.get("max_tokens"))
        if most is not None and end.output_tokens >= most:
            return f"[cut after {end.output_tokens} tokens; /set max_tokens allows more.]"
        return f"[cut after {end.output_tokens} tokens, where the context ends. /reset begins anew.]"

    def _numbers(self, end: AnswerEnd) -> str:
        speed = f", {end.output_tokens / end.seconds:.0f} a second" if end.seconds else ""
        return f"[{end.output_tokens} tokens{speed}{self.context()}]"

    def context(self) -> str:
        """How much of the context is used, behind something else."""
        used, length = self.talk.used, self.talk.model.context_length
        if used is None:
            return ""
        return f"; context {used:,}" + (f" of {length:,} ({used / length:.0%})" if length else "")

    def _remedy(self) -> str:
        used, length = self.talk.used, self.talk.model.context_length
        is_full = used is not None and length is not None and used > 0.9 * length
        return " /reset begins anew." if is_full else ""
