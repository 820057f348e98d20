"""The small files of a model folder, and what may stand in for any of its files."""

import io
import json
import os
import stat
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, shorten

JSON_MAX = 16 << 20
"""Bytes of a JSON file that is read here: values take some twenty times their text."""
TEXT_MAX = 256 << 20
"""Bytes of any file that is read whole, a tokenizer among them."""
_TEXTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_file(path: Path) -> io.BufferedReader:
    """A plain file, opened for reading. Raises CheckpointError for what is none, and never waits for a FIFO."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        check_plain(path, os.fstat(handle))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; the model's folder is incomplete.") from error
    except OSError as error:
        raise CheckpointError(f"{shorten(path, 300)} cannot be read: {error.strerror}.") from error
    except CheckpointError:
        os.close(handle)
        raise
    return open(handle, "rb")


def check_plain(path: Path, status: os.stat_result) -> None:
    """Raises CheckpointError for the status of what is no plain file."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no plain file")
        raise CheckpointError(f"{path} is {kind}, not a file. Put the model's own file there.")


def read_json(path: Path, limit: int = JSON_MAX) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError that names the file; `limit` is the bytes that it may have."""
    value = read_json_value(path, limit)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def read_json_value(path: Path, limit: int = JSON_MAX) -> Any:
    """A JSON value. Raises CheckpointError that names the file; `limit` is the bytes that it may have."""
    with open_file(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path} is larger than the {limit >> 20} MiB that are read of it.")
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are no text, and no one could send them
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else shorten(error, 200)
        raise CheckpointError(f"{path} is not readable JSON: {reason}") from error
    return value


def check_files(folder: Path) -> None:
    """Raises CheckpointError where something in place of a model's file could not be read, or not in bounded time.

    Symbolic links may lead anywhere (hub caches consist of them), to plain files; but what is a text without a form of
    its own, and so could be any file of this machine, has to lie in the folder or in a hub's cache.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.") from error
    for name in names:
        is_text = any(fnmatch(name, pattern) for pattern in _TEXTS)
        if not is_text and not any(fnmatch(name, pattern) for pattern in _WEIGHTS):
            continue
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(
                f"{shorten(path, 300)} cannot be opened ({error.strerror}). Download it again."
            ) from error
        check_plain(path, status)
        if is_text and status.st_size > TEXT_MAX:
            raise CheckpointError(f"{path} is larger than the {TEXT_MAX >> 20} MiB that are read of such a file.")
        if name.endswith(".jinja") and path.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(folder.resolve()) and target.parent.name != "blobs":
                raise CheckpointError(
                    f"{path} points out of its folder, to {shorten(target, 200)}, which is not allowed."
                )
