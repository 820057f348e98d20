"""What was typed in earlier conversations: a file of bounded size that nobody else may read."""

import contextlib
import json
import os
from pathlib import Path

MOST = 1000
"""Entries that are kept."""
LONGEST = 1 << 14
"""Characters of an entry; what is longer is not kept."""
BYTES = 4 << 20
"""Of the file that are read."""


def history_file() -> Path:
    """Where it is: `$XDG_STATE_HOME/octavo/chat_history`, or below `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "octavo" / "chat_history"


class InputHistory:
    """Entries, oldest first.

    Args:
        path: the file, with a JSON text on each line; None to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: list[str] = [] if path is None else self._read(path)
        if path is not None and self._num_lines > 2 * MOST:
            self._rewrite(path)

    def _read(self, path: Path) -> list[str]:
        self._num_lines = 0
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - BYTES))
                lines = file.read(BYTES).split(b"\n")
        except OSError:
            return []
        self._num_lines = len(lines)
        entries = []
        for line in lines[-MOST - 1 :]:
            with contextlib.suppress(ValueError, RecursionError):  # a line that was cut, or is none of ours
                if isinstance(entry := json.loads(line), str):
                    entries.append(entry)
        return entries[-MOST:]

    def add(self, text: str) -> None:
        """Keep an entry. Where it cannot be written, it is kept for this conversation alone."""
        if not text.strip() or len(text) > LONGEST or (self.entries and self.entries[-1] == text):
            return
        self.entries = [*self.entries[-MOST + 1 :], text]
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(handle, "ab") as file:
                os.chmod(self._path, 0o600)
                file.write(_line(text))

    def _rewrite(self, path: Path) -> None:
        """Leave only what is kept, in one step: another conversation may be reading."""
        with contextlib.suppress(OSError):
            new = path.with_name(f"{path.name}.{os.getpid()}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(map(_line, self.entries))
            os.replace(new, path)


def _line(text: str) -> bytes:
    return json.dumps(text).encode() + b"\n"
