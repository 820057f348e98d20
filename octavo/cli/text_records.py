"""Texts that commands read, a line each, as they come."""

import argparse
import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from octavo.errors import InvalidRequestError

TEXT_KEYS = ("text", "input", "prompt", "content")
"""Where an object of a JSON line has its text: the first of these."""
AHEAD = 1024
"""Lines of a pipe that are read before they are needed."""
Record = dict[str, Any]
"""A text, with what came beside it in its JSON line."""


def record_of(line: str, number: int, is_json: bool) -> Record:
    """A line's text. Raises InvalidRequestError that names the line."""
    if not is_json:
        return {"text": line}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"line {number} is not JSON: {error}") from error
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        key = next((k for k in TEXT_KEYS if isinstance(value.get(k), str)), None)
        if key is not None:
            return {**{k: v for k, v in value.items() if k != key}, "text": value[key]}
    raise InvalidRequestError(f"line {number} has no text: it must be a string, or an object with {TEXT_KEYS[0]!r}.")


def records_of(lines: Iterable[str], is_json: bool) -> Iterator[Record]:
    """The texts of lines; empty ones are left out."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield record_of(line.rstrip("\r\n"), number, is_json)


class Records:
    """What there is to read, of which no more than a part is in memory.

    Iterate over it for the records; None comes where none is there yet, and others may be worked on meanwhile.
    """

    total: int | None = None
    """How many there are, where that is known."""

    def check(self) -> None:
        """Raises InvalidRequestError for what is known to be wrong before a model is loaded."""

    def next(self, wait: bool) -> Record | None:
        """The next record; None if it has not come yet, which `wait` rules out. Raises StopIteration at the end."""
        raise NotImplementedError


class ListedRecords(Records):
    """Texts that are arguments."""

    def __init__(self, texts: list[str]) -> None:
        self.total, self._left = len(texts), iter(texts)

    def next(self, wait: bool) -> Record | None:
        return {"text": next(self._left)}


class FileRecords(Records):
    """Lines of a file, which `check` reads through once."""

    def __init__(self, path: str, is_json: bool) -> None:
        self._path, self._is_json = path, is_json
        self._left: Iterator[Record] | None = None

    def _read(self) -> Iterator[Record]:
        try:
            with open(self._path, encoding="utf-8") as file:
                yield from records_of(file, self._is_json)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"--file {self._path} cannot be read: {error}") from error

    def check(self) -> None:
        if Path(self._path).exists() and not Path(self._path).is_file():
            return  # a FIFO can be read once
        self.total = sum(1 for _ in self._read())
        _need_some(self.total)

    def next(self, wait: bool) -> Record | None:
        self._left = self._left or self._read()
        return next(self._left)


class PipedRecords(Records):
    """Lines of standard input, read by a thread, so that who writes slowly holds nothing up."""

    def __init__(self, file: Iterable[str], is_json: bool) -> None:
        self._queue: queue.Queue[Record | BaseException] = queue.Queue(AHEAD)
        self._source = records_of(file, is_json)
        self._quiet, self._count = threading.Event(), 0
        threading.Thread(target=self._read, name="octavo-lines", daemon=True).start()

    def _read(self) -> None:
        try:
            for record in self._source:
                self._count += 1
                if self._queue.full():
                    self._quiet.set()
                self._queue.put(record)
            _need_some(self._count)
            self.total = self._count
            self._queue.put(StopIteration())
        except UnicodeDecodeError as error:
            self._queue.put(InvalidRequestError(f"standard input is not UTF-8 text: {error}"))
        except Exception as error:
            self._queue.put(error)
        self._quiet.set()

    def check(self) -> None:
        """What comes within a second, as from a file or an `echo`, is looked at before the model is loaded."""
        self._quiet.wait(1.0)
        waiting = list(self._queue.queue)
        if waiting and isinstance(waiting[-1], InvalidRequestError):
            raise waiting[-1]

    def next(self, wait: bool) -> Record | None:
        try:
            got = self._queue.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(got, BaseException):
            self._queue.put(got)  # for who asks again
            raise got
        return got


def _need_some(count: int) -> None:
    if not count:
        raise InvalidRequestError("there is no text to embed.")


def records_from(namespace: argparse.Namespace) -> Records:
    """The texts of a command's arguments, of its --file, or of standard input."""
    if namespace.texts:
        return ListedRecords(namespace.texts)
    if namespace.file:
        return FileRecords(namespace.file, namespace.jsonl or namespace.file.endswith(".jsonl"))
    if sys.stdin.isatty():
        raise InvalidRequestError('give texts: octavo embed "Hello", --file PATH, or lines on standard input.')
    return PipedRecords(sys.stdin, namespace.jsonl)
