"""What may follow what is typed: commands, their words, files."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.cli.chat.chat_commands import COMMANDS, NAMES
from octavo.cli.chat.conversation import Conversation
from octavo.cli.chat.sampling_values import VALUES, bounds

MOST_FILES = 200


@dataclass(frozen=True)
class Candidate:
    """A text in place of what was typed last."""

    text: str
    replaces: int
    """Characters before the cursor that it stands for."""
    about: str = ""


def candidates(line: str, talk: Conversation) -> Iterator[Candidate]:
    """What may stand in place of the last word of `line`, which the cursor is behind."""
    if not line.startswith("/") or "\n" in line:
        return
    name, is_named, argument = line.partition(" ")
    if not is_named:
        for command in COMMANDS:
            if command.name.startswith(name[1:]):
                yield Candidate(f"/{command.name}", len(name), command.help)
        return
    known = NAMES.get(name[1:])
    if known is None or not known.completes:
        return
    argument = argument.lstrip()
    if known.completes in ("file", "model"):
        yield from files(argument)
    elif known.completes == "value":
        yield from _words(argument, {value: bounds(value) for value in VALUES})
    elif known.completes == "adapter":
        yield from _words(argument, {"off": "the model alone", **talk.model.adapters})
    else:
        yield from _words(argument, dict.fromkeys(known.completes.split(), ""))


def common_beginning(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    least, greatest = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), len(least))
    return least[:size]


def _words(begun: str, words: dict[str, str]) -> Iterator[Candidate]:
    return (Candidate(word, len(begun), about) for word, about in words.items() if word.startswith(begun))


def files(begun: str) -> Iterator[Candidate]:
    """Files whose paths begin so; folders end in a slash."""
    folder, name = os.path.split(begun)
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            found = sorted(_shown(entries, name))
    except (OSError, ValueError, RuntimeError):
        return
    for text in found[:MOST_FILES]:
        yield Candidate(os.path.join(folder, text), len(begun))


def _shown(entries: Iterable[os.DirEntry[str]], name: str) -> Iterator[str]:
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield entry.name + ("/" if entry.is_dir() else "")
