"""/v1/batches: files of requests that are answered one after the other, and go on after a restart."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from starlette.types import ASGIApp

from octavo.errors import InvalidRequestError
from octavo.server.batch_lines import BatchLine, LineError, answer_lines, file_lines, read_line
from octavo.server.file_store import FileStore, new_id, read_all, write_whole
from octavo.server.request_errors import NotFoundError

log = logging.getLogger("octavo")

WINDOW = 24 * 3600
"""Seconds that a batch has."""
MAX_ERRORS = 20
"""Lines at fault that a batch tells of."""
MAX_LINES = 50_000
MAX_BATCHES = 1000
"""Batches that are known; of those that have ended, the oldest go."""
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class Batch:
    """A batch, as its file in the folder has it."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    metadata: dict[str, str] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)
    """When it came to be what it is or was: `in_progress_at` ..."""

    def as_object(self) -> dict[str, Any]:
        """OpenAI's object."""
        ats = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: self.times.get(name) for name in (*ats, "cancelled_at")},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }


class Batches:
    """The batches of a folder, which run one after the other.

    Args:
        files: have their inputs and outputs.
        app: answers each line; asked for when it is needed.
        longest: bytes of a line.
        is_ending: whether the server ends: what is not done then is done after the next start.
    """

    def __init__(
        self, files: FileStore, app: Callable[[], ASGIApp], longest: int, is_ending: Callable[[], bool]
    ) -> None:
        self.files, self.app, self.longest, self.is_ending = files, app, longest, is_ending
        self._batches = {batch.id: batch for batch in read_all(files.folder, "batch", Batch)}
        self._worker: asyncio.Task[None] | None = None

    def all(self) -> list[Batch]:
        """All batches, the latest first."""
        return sorted(self._batches.values(), key=lambda batch: (-batch.created_at, batch.id))

    def get(self, id: str) -> Batch:
        """The batch of that id. Raises NotFoundError where there is none."""
        if (batch := self._batches.get(id)) is None:
            raise NotFoundError(f"there is no batch {id!r:.80}.")
        return batch

    def uses(self, file_id: str) -> bool:
        """Whether a batch that has not ended needs a file."""
        return any(batch.input_file_id == file_id and batch.status not in ENDED for batch in self._batches.values())

    def add(self, input_file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None) -> Batch:
        """A batch that runs when those before it have ended. Raises NotFoundError, InvalidRequestError."""
        self.files.get(input_file_id)
        ended = [batch for batch in self.all() if batch.status in ENDED]
        if len(self._batches) >= MAX_BATCHES:
            if not ended:
                raise InvalidRequestError(f"{MAX_BATCHES} batches are waiting already.")
            del self._batches[ended[-1].id]
            self._path(ended[-1], ".json").unlink(missing_ok=True)
        now = int(time.time())
        batch = Batch(new_id("batch"), endpoint, input_file_id, window, now, now + WINDOW, metadata=metadata)
        self._batches[batch.id] = batch
        self._write(batch)
        self.begin()
        return batch

    def cancel(self, id: str) -> Batch:
        """End a batch; what is done of it is kept. Raises NotFoundError, InvalidRequestError for one that has ended."""
        batch = self.get(id)
        if batch.status in ENDED:
            raise InvalidRequestError(f"the batch is {batch.status} already.")
        if batch.status != "cancelling":
            self._become(batch, "cancelling")
        self.begin()
        return batch

    def begin(self) -> None:
        """Run what is to be run, unless it runs already."""
        if self._worker is None and any(batch.status not in ENDED for batch in self._batches.values()):
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            while not self.is_ending():
                waiting = [batch for batch in reversed(self.all()) if batch.status not in ENDED]
                if not waiting:
                    return
                try:
                    await self._run(waiting[0])
                except Exception as error:
                    log.exception("a batch has failed")
                    self._fail(waiting[0], [{"code": "server_error", "message": str(error)[:500]}])
        finally:
            self._worker = None

    async def _run(self, batch: Batch) -> None:
        if batch.status == "validating":
            await self._validate(batch)
        if batch.status == "in_progress":
            await self._answer(batch)
        if batch.status in ENDED or (self.is_ending() and batch.status == "in_progress"):
            return
        self._end(batch)

    async def _validate(self, batch: Batch) -> None:
        with self.files.open(batch.input_file_id) as file:
            errors, total = await asyncio.to_thread(check_file, file, batch.endpoint, self.longest)
        if errors:
            self._fail(batch, errors)
        elif batch.status == "validating":
            batch.total = total
            self._become(batch, "in_progress")

    async def _answer(self, batch: Batch) -> None:
        """Answer the lines that have no answer yet."""
        outputs = [self._path(batch, kind) for kind in (".output", ".errors")]
        done = [await asyncio.to_thread(answered, path) for path in outputs]
        batch.completed, batch.failed = map(len, done)

        def is_stopped() -> bool:
            return batch.status != "in_progress" or self.is_ending() or time.time() > batch.expires_at

        with contextlib.ExitStack() as stack:
            source = stack.enter_context(self.files.open(batch.input_file_id))
            output, errors = (stack.enter_context(open(path, "ab")) for path in outputs)
            lines = self._lines(source, batch.endpoint, done[0] | done[1])
            async with contextlib.aclosing(answer_lines(self.app(), lines, is_stopped=is_stopped)) as results:
                async for result in results:
                    file = errors if result.is_error else output
                    file.write(result.text)
                    file.flush()
                    batch.failed += result.is_error
                    batch.completed += not result.is_error

    def _lines(self, source: BinaryIO, endpoint: str, done: set[str]) -> Iterator[BatchLine]:
        for number, text in file_lines(source, self.longest):
            line = read_line(number, text, self.longest, endpoint)
            if line.custom_id not in done:
                yield line

    def _end(self, batch: Batch) -> None:
        """What is done becomes files."""
        is_cancelled = batch.status == "cancelling"
        is_whole = batch.completed + batch.failed == batch.total
        self._become(batch, "cancelling" if is_cancelled else "finalizing")
        for kind, name in ((".output", "output_file_id"), (".errors", "error_file_id")):
            path = self._path(batch, kind)
            if path.exists() and path.stat().st_size:
                made = self.files.take(path, f"{batch.id}{kind}.jsonl", "batch_output")
                setattr(batch, name, made.id)
                self._write(batch)
            path.unlink(missing_ok=True)
        self._become(batch, "cancelled" if is_cancelled else "completed" if is_whole else "expired")

    def _fail(self, batch: Batch, errors: list[dict[str, Any]]) -> None:
        batch.errors = errors
        self._become(batch, "failed")

    def _become(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.times.setdefault(f"{status}_at", int(time.time()))
        self._write(batch)

    def _write(self, batch: Batch) -> None:
        write_whole(self._path(batch, ".json"), msgspec.json.encode(batch))

    def _path(self, batch: Batch, kind: str) -> Path:
        return self.files.folder / f"{batch.id}{kind}"


def check_file(file: BinaryIO, endpoint: str, longest: int) -> tuple[list[dict[str, Any]], int]:
    """What is wrong with the lines of a file, and how many it has."""
    errors, seen = list[dict[str, Any]](), set[str]()
    for number, text in file_lines(file, longest):
        try:
            line = read_line(number, text, longest, endpoint)
            if line.custom_id in seen:
                raise LineError(f"custom_id {line.custom_id!r:.60} is there twice.")
            seen.add(line.custom_id)
            if len(seen) > MAX_LINES:
                raise LineError(f"a batch has at most {MAX_LINES:,} lines.")
        except LineError as error:
            errors.append({"code": "invalid_line", "line": number, "message": str(error), "param": None})
            if len(errors) == MAX_ERRORS or len(seen) > MAX_LINES:
                break
    if not seen and not errors:
        errors.append({"code": "empty_file", "line": None, "message": "the file has no requests.", "param": None})
    return errors, len(seen)


def answered(path: Path) -> set[str]:
    """The custom_ids of lines that an output has. A last line that was cut short is taken away."""
    if not path.exists():
        return set()
    found, end = set[str](), 0
    with open(path, "rb+") as file:
        for text in file:
            if not text.endswith(b"\n"):
                break
            found.add(str(msgspec.json.decode(text)["custom_id"]))
            end += len(text)
        file.truncate(end)
    return found
