"""`octavo run-batch`: the requests of a file in OpenAI's Batch format, answered without a server."""

import argparse
import asyncio
import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

import httpx
import prometheus_client
from prometheus_client import CollectorRegistry
from tqdm import tqdm

from octavo.cli.flags import engine_args_of, take_model
from octavo.cli.serve import server_options_of
from octavo.config import EngineArgs
from octavo.errors import ConfigError, OctavoError, shorten
from octavo.server.app import inner_app
from octavo.server.batch_lines import AT_A_TIME, BatchResult, run_file
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service

SECONDS = 300.0
"""For connecting to where a file is fetched from or sent to, and for each part of it."""


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


@contextlib.contextmanager
def opened_input(name: str, folder: str | None) -> Iterator[IO[bytes]]:
    """The input as a file that can be read twice: of a path, an http(s) URL, or `-` for standard input.

    Raises ConfigError for what cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            file: IO[bytes] = sys.stdin.buffer
            if name != "-" and not _is_url(name):
                file = stack.enter_context(open(name, "rb"))
            if _is_url(name) or not file.seekable():
                staged = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                _fetch(name, staged) if _is_url(name) else shutil.copyfileobj(file, staged)
                file = staged
                file.seek(0)
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"--input-file {shorten(name)} cannot be read: {error}") from error
        yield file


def _fetch(url: str, file: IO[bytes]) -> None:
    with httpx.stream("GET", url, follow_redirects=True, timeout=SECONDS) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            file.write(part)


class Output:
    """Where answers go: a path, `-` for standard output, or an http(s) URL, to which all are PUT at the end.

    Raises ConfigError for what cannot be written.
    """

    def __init__(self, name: str, folder: str | None) -> None:
        self._name = name
        with self._failing():
            self._file: IO[bytes] = sys.stdout.buffer
            if _is_url(name):
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            elif name != "-":
                self._file = open(name, "wb")  # noqa: SIM115

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"--output-file {shorten(self._name)} cannot be written: {error}") from error

    def write(self, line: bytes) -> int:
        """Add a line, which others may read at once."""
        with self._failing():
            self._file.write(line)
            self._file.flush()
        return len(line)

    def close(self) -> None:
        """All are written."""
        with self._failing():
            if _is_url(self._name):
                self._file.seek(0)
                httpx.put(self._name, content=self._file, timeout=SECONDS).raise_for_status()
            if self._name != "-":
                self._file.close()


@dataclasses.dataclass
class Job:
    """A file's requests, and what answers them."""

    args: EngineArgs
    options: ServerOptions
    at_a_time: int
    has_metrics: bool


def run(namespace: argparse.Namespace) -> int:
    take_model(namespace, namespace.served)
    args, options = engine_args_of(namespace), server_options_of(namespace)
    if options.lora_modules:
        args = dataclasses.replace(args, enable_lora=True)
    inflight = namespace.max_inflight
    if inflight is not None and inflight < 1:
        raise ConfigError(f"--max-inflight {inflight} must be at least 1.")
    at_a_time = inflight or max(AT_A_TIME, 2 * args.max_num_seqs * args.data_parallel_size)
    folder = namespace.output_tmp_dir
    with opened_input(namespace.input_file, folder) as source:
        target = Output(namespace.output_file, folder)
        count, failed = asyncio.run(_answer(Job(args, options, at_a_time, namespace.enable_metrics), source, target))
        target.close()
    print(f"octavo: {count} requests are answered, {failed} of them with an error.", file=sys.stderr)
    return 0


async def _answer(job: Job, source: IO[bytes], target: Output) -> tuple[int, int]:
    """Answer all lines: how many there are, and how many answers are errors."""
    service, options, failed = Service(job.args, job.options), job.options, 0
    service.client.launch()
    try:
        await service.start()
        if job.has_metrics and service.metrics is not None:
            _serve_metrics(options, service.metrics.registry)
        total = sum(1 for line in source if line.strip())
        source.seek(0)
        with tqdm(total=total, unit="request", desc="Batch", disable=not sys.stderr.isatty()) as bar:

            def on_result(result: BatchResult) -> None:
                nonlocal failed
                failed += result.is_error
                bar.update()

            longest = options.body_bytes(bool(service.media_kinds))
            out = cast(BinaryIO, target)
            count = await run_file(inner_app(service), cast(BinaryIO, source), out, longest, job.at_a_time, on_result)
        if service.client.failure is not None:
            raise OctavoError(f"the engine is lost: {service.client.failure!r}")
    finally:
        await service.stop()
    return count, failed


def _serve_metrics(options: ServerOptions, registry: CollectorRegistry) -> None:
    try:
        prometheus_client.start_http_server(options.port, options.host, registry)
    except OSError as error:
        raise ConfigError(f"--enable-metrics: cannot listen at {options.host}:{options.port} ({error}).") from error
