"""What a model thinks before it answers, told apart from the answer."""

from collections.abc import Sequence
from typing import Literal

from octavo.server.json_scanner import WHITESPACE

THINK = ("<think>", "</think>")
MARKERS = {
    "deepseek_r1": THINK,
    "deepseek_v3": THINK,
    "glm45": THINK,
    "granite": ("Here is my thought process:", "Here is my response:"),
    "qwen3": THINK,
}
"""vLLM's names of parsers, and what a thought stands between."""


def reasoning_markers(option: str, templates: Sequence[str]) -> tuple[str, str] | None:
    """The markers of `--reasoning-parser`; `auto` goes by what the chat templates write, and None is for none."""
    if option != "auto":
        return MARKERS.get(option)
    return THINK if THINK[1] in "".join(templates) else None


class ReasoningParser:
    """Takes a model's text piece by piece, and gives what is thought and what is answered.

    An answer thinks where it begins with the opening marker, or where the prompt has ended with it; the thought ends
    with the closing marker, or with the answer. White space around markers belongs to them.

    Args:
        markers: before and after a thought.
        prompt: the end of it decides whether the answer begins inside a thought.
    """

    def __init__(self, markers: tuple[str, str], prompt: str) -> None:
        self.opening, self.closing = markers
        begun = prompt.rstrip().endswith(self.opening)
        self._state: Literal["before", "thinking", "ended", "answering"] = "thinking" if begun else "before"
        self._held = ""
        """Text that may belong to a marker."""
        self._thought = False
        """Whether there was any but white space of it."""

    def feed(self, text: str, finished: bool) -> tuple[str, str]:
        """What is certainly thought, and what is certainly answered."""
        held, self._held = self._held + text, ""
        thought = answer = ""
        if self._state == "before":
            start = held.lstrip(WHITESPACE)
            if start.startswith(self.opening):
                self._state, held = "thinking", start.removeprefix(self.opening)
            elif self.opening.startswith(start) and not finished:
                self._held = held
                return "", ""
            else:
                self._state = "answering"
        if self._state == "thinking":
            thought, closing, held = held.partition(self.closing)
            if closing:
                self._state, thought = "ended", thought.rstrip(WHITESPACE)
            elif not finished:
                thought, self._held = self._split(thought)
            if not self._thought:
                thought = thought.lstrip(WHITESPACE)
                self._thought = bool(thought)
            thought = thought.rstrip(WHITESPACE) if finished else thought
        if self._state == "ended":
            held = held.lstrip(WHITESPACE)
            self._state = "answering" if held else "ended"
        if self._state == "answering":
            answer = held
        return thought, answer

    def _split(self, thought: str) -> tuple[str, str]:
        """What is before everything that may be of the closing marker and the white space before it."""
        for size in range(min(len(thought), len(self.closing) - 1), -1, -1):
            if thought.endswith(self.closing[:size]):
                sure = thought[: len(thought) - size].rstrip(WHITESPACE)
                return sure, thought[len(sure) :]
        return thought, ""
