"""Files of /v1/files: in one folder, each under an id of the server's own."""

import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from octavo.errors import ConfigError, InvalidRequestError
from octavo.server.request_errors import NotFoundError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

ID = re.compile(r"(file|batch)-[0-9a-f]{32}", re.ASCII)
"""What ids look like. Names in the folder are made of these alone, whatever clients call their files."""
OVERHEAD = 4096
"""Bytes that a file counts for beside its own."""


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(16)}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was before."""
    made = path.with_name(f"{path.name}.new")
    with open(made, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)


@dataclass
class StoredFile:
    """What is known of a file, as clients get it."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None

    def as_object(self) -> dict[str, Any]:
        """OpenAI's object."""
        more = {} if self.expires_at is None else {"expires_at": self.expires_at}
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            **more,
        }


class FileStore:
    """The files of a folder, which this server alone uses.

    Args:
        folder: is made where it is not there.
        max_bytes: of all files together.

    Raises ConfigError for a folder that cannot be used, or another server uses.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._files: dict[str, StoredFile] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(folder / ".lock", "wb")  # noqa: SIM115 - held as long as the server runs
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"files_folder: {folder} is in use by another server. Give each its own.") from error
        except OSError as error:
            raise ConfigError(f"files_folder: {folder} cannot be used: {error}") from error
        for file in read_all(folder, "file", StoredFile):
            if self.path(file.id).is_file():
                self._files[file.id] = file
        for path in folder.glob("file-*.data"):  # whose upload, or whose deletion, was cut short
            if path.stem not in self._files:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another server use the folder."""
        self._lock.close()

    def path(self, id: str) -> Path:
        """Where a file's bytes are."""
        assert ID.fullmatch(id)
        return self.folder / f"{id}.data"

    @property
    def num_bytes(self) -> int:
        """What all files count for."""
        return sum(file.bytes + OVERHEAD for file in self._files.values())

    def check_room(self, num_bytes: int) -> None:
        """Raises InvalidRequestError unless a file of so many bytes has room."""
        if self.num_bytes + num_bytes + OVERHEAD > self.max_bytes:
            raise InvalidRequestError(
                f"there is no room for {num_bytes:,} bytes: the files here may take {self.max_bytes:,} together. "
                "Delete some, or start the server with a larger --files-size."
            )

    def add(self, data: bytes, filename: str, purpose: str, expires_after: int | None = None) -> StoredFile:
        """Keep a file. Raises InvalidRequestError where there is no room."""
        self.check_room(len(data))
        id, now = new_id("file"), int(time.time())
        write_whole(self.path(id), data)
        expires_at = None if expires_after is None else now + expires_after
        return self._know(StoredFile(id, filename, purpose, len(data), now, expires_at))

    def take(self, path: Path, filename: str, purpose: str) -> StoredFile:
        """Keep what the server itself has written to a path of the folder, which is moved."""
        id, size = new_id("file"), path.stat().st_size
        os.replace(path, self.path(id))
        return self._know(StoredFile(id, filename, purpose, size, int(time.time())))

    def _know(self, file: StoredFile) -> StoredFile:
        write_whole(self.folder / f"{file.id}.json", msgspec.json.encode(file))
        self._files[file.id] = file
        return file

    def all(self) -> list[StoredFile]:
        """All files, the oldest first."""
        now = time.time()
        for file in [file for file in self._files.values() if file.expires_at is not None and file.expires_at < now]:
            self._forget(file.id)
        return sorted(self._files.values(), key=lambda file: (file.created_at, file.id))

    def get(self, id: str) -> StoredFile:
        """The file of that id. Raises NotFoundError where there is none."""
        self.all()
        if (file := self._files.get(id)) is None:
            raise NotFoundError(f"there is no file {id!r:.80}.")
        return file

    def open(self, id: str) -> BinaryIO:
        """Its bytes. Raises NotFoundError where there is none."""
        return open(self.path(self.get(id).id), "rb")

    def delete(self, id: str) -> None:
        """Keep it no longer. Raises NotFoundError where there is none."""
        self._forget(self.get(id).id)

    def _forget(self, id: str) -> None:
        del self._files[id]
        (self.folder / f"{id}.json").unlink(missing_ok=True)
        self.path(id).unlink(missing_ok=True)


def read_all(folder: Path, kind: str, cls: type[T]) -> list[T]:
    """What the folder's files `KIND-ID.json` have; those that cannot be read are left alone."""
    found = list[T]()
    for path in sorted(folder.glob(f"{kind}-*.json")):
        if not ID.fullmatch(path.stem) or path.is_symlink():
            continue
        try:
            value = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError, ValueError):
            continue
        if getattr(value, "id", None) == path.stem:
            found.append(value)
    return found
