"""OpenAI's Batch files: a request a line, and an answer a line. What /v1/batches and `octavo run-batch` run."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from starlette.types import ASGIApp

from octavo.errors import InvalidRequestError
from octavo.server.body import parse_json
from octavo.server.event_stream import to_json
from octavo.server.inner_call import post_json

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/pooling",
    "/classify",
)
"""What a line may ask."""
LONGEST_ID = 512
"""Characters of a custom_id."""
AT_A_TIME = 64
"""Lines that run at a time, unless a caller says otherwise."""
WAIT = 0.5
"""Seconds after which a line that the server had no room for is tried again."""
TRIES = 240
"""Of a line for which there is no engine."""


class LineError(InvalidRequestError):
    """A line that is no request."""


@dataclass(frozen=True)
class BatchLine:
    """A request of a file."""

    number: int
    """From 1 on."""
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class BatchResult:
    """What became of a line."""

    custom_id: str
    is_error: bool
    text: bytes
    """The line of the output file, with its end."""


def result_of(custom_id: str, status: int, body: Any, error: dict[str, Any] | None = None) -> BatchResult:
    """A line of an output file."""
    response = None
    if error is None:
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return BatchResult(custom_id, error is not None or status >= 400, to_json(line) + b"\n")


def file_lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that have anything in them, with their numbers. Of one that is longer, only so much.

    Args:
        longest: bytes of a line.
    """
    number = 0
    while line := file.readline(longest + 2):
        number += 1
        text = line.strip()
        while not line.endswith(b"\n") and (line := file.readline(longest + 2)):
            pass
        if text:
            yield number, text


def read_line(number: int, text: bytes, longest: int, endpoint: str | None = None) -> BatchLine:
    """The request of a line. Raises LineError that says what is wrong with it.

    Args:
        longest: bytes that it may have.
        endpoint: what all lines of the file must ask; None for any that there is.
    """
    if len(text) > longest:
        raise LineError(f"the line is longer than {longest} bytes, the largest request.")
    try:
        value = parse_json(text, "the line")
    except InvalidRequestError as error:
        raise LineError(str(error)) from error
    if not isinstance(value, dict):
        raise LineError("the line must be a JSON object.")
    custom_id, url, body = value.get("custom_id"), value.get("url"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        raise LineError(f"custom_id must be text of 1 to {LONGEST_ID} characters.")
    if value.get("method", "POST") != "POST":
        raise LineError("method must be POST.")
    if not isinstance(url, str) or url not in ENDPOINTS or (endpoint is not None and url != endpoint):
        raise LineError(f"url must be {endpoint or 'one of ' + ', '.join(ENDPOINTS)}, not {url!r:.60}.")
    if not isinstance(body, dict):
        raise LineError("body must be an object.")
    if body.get("stream") or body.get("background"):
        raise LineError("body: a batch has no streams, and nothing in the background.")
    return BatchLine(number, custom_id, url, body)


async def answer_line(app: ASGIApp, line: BatchLine) -> BatchResult:
    """What the application answers to a line, once it has room for it."""
    tries = 0
    while True:
        answer = await post_json(app, line.url, to_json(line.body))
        tries += answer.status == 503
        if answer.status not in (429, 503) or tries > TRIES:
            break
        await asyncio.sleep(WAIT)
    return result_of(line.custom_id, answer.status, parse_json(answer.body, "the answer"))


async def answer_lines(
    app: ASGIApp,
    lines: Iterable[BatchLine | BatchResult],
    at_a_time: int = AT_A_TIME,
    is_stopped: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[BatchResult, None]:
    """Results in the order of the lines.

    Args:
        app: the application, without keys.
        lines: requests, read as they are needed; results, of lines that are none, are given as they are.
        at_a_time: requests that run at a time.
        is_stopped: whether no further line is to be begun. Those that were begun are finished.
    """
    gate, source = asyncio.Semaphore(at_a_time), iter(lines)
    begun = deque[asyncio.Task[BatchResult]]()

    async def answer(line: BatchLine | BatchResult) -> BatchResult:
        if isinstance(line, BatchResult):
            return line
        async with gate:
            return await answer_line(app, line)

    try:
        while True:
            # More than run: one that takes long, whose result others wait behind, holds nothing up.
            while len(begun) < 4 * at_a_time and not is_stopped() and (line := next(source, None)) is not None:
                begun.append(asyncio.create_task(answer(line)))
            if not begun:
                return
            result = await begun[0]
            begun.popleft()
            yield result
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


def checked_lines(file: BinaryIO, longest: int) -> Iterator[BatchLine | BatchResult]:
    """The requests of a file; for each line that is none, what is wrong with it as its result."""
    for number, text in file_lines(file, longest):
        try:
            yield read_line(number, text, longest)
        except LineError as error:
            yield result_of("", 400, None, {"code": "invalid_line", "message": f"line {number}: {error}"})


async def run_file(
    app: ASGIApp,
    source: BinaryIO,
    target: BinaryIO,
    longest: int,
    at_a_time: int = AT_A_TIME,
    on_result: Callable[[BatchResult], None] = lambda result: None,
) -> int:
    """Answer each line of a file into another, in order, failures too. The number of lines.

    Args:
        app: the application, without keys (`app.inner_app`), over a service that has started.
        longest: bytes of a line (`ServerOptions.body_bytes`).
        on_result: called after each.
    """
    count = 0
    async for result in answer_lines(app, checked_lines(source, longest), at_a_time):
        target.write(result.text)
        count += 1
        on_result(result)
    return count
