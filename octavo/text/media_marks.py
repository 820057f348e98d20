"""Marks in a prompt's text that say where its media belong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from octavo.config import MEDIA_KINDS

Mark = Callable[[str, int], str]
"""What a prompt has for the n-th item of a kind, as `Processor.mark` says; empty where nothing stands for it."""


def mark_media(messages: Sequence[Mapping[str, Any]], mark: Mark) -> list[dict[str, Any]]:
    """Messages as text alone, for templates that take no parts: marks of a message's media first, each on a line.

    Args:
        mark: what a prompt has for the n-th item of a kind, as `Processor.mark` says; a text that has marks of its own
            keeps them, and gets only those that it lacks.
    """
    counts = dict.fromkeys(MEDIA_KINDS, 0)
    marked = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) or not isinstance(content, Sequence):
            marked.append(dict(message))
            continue
        marks, texts = [], []
        for part in content:
            if isinstance(part, Mapping) and part.get("type") in MEDIA_KINDS:
                counts[part["type"]] += 1
                marks.append(mark(part["type"], counts[part["type"]]))
            else:
                texts.append(part if isinstance(part, str) else str(part.get("text", "")))
        text = "\n".join(texts)
        marked.append({**message, "content": "\n".join([*_missing(marks, text), text])})
    return marked


def _missing(marks: Sequence[str], text: str) -> Iterator[str]:
    left = {mark: text.count(mark) for mark in marks if mark}
    for mark in filter(None, marks):
        left[mark] -= 1
        if left[mark] < 0:
            yield mark
