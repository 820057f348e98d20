"""A server in a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

READY_WITHIN = 180.0
"""Seconds after which a test gives up on a server: many times what it takes, for machines that have much else to do."""


@dataclass
class Running:
    """A server that answers."""

    process: subprocess.Popen[str]
    url: str
    log: list[str] = field(default_factory=list)

    def engine_pid(self) -> int:
        """The engine's process."""
        return self.engine_pids()[0]

    def engine_pids(self) -> list[int]:
        """The processes of all engines."""
        out = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "engine_process"], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in out.stdout.split()]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        found = re.findall(rf"^octavo:{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return sum(map(float, found))

    def metrics_by(self, label: str, name: str) -> dict[str, float]:
        """A metric's values by one of its labels."""
        pattern = rf'^octavo:{name}{{[^}}]*{label}="([^"]*)"[^}}]*}} (\S+)$'
        return {key: float(value) for key, value in re.findall(pattern, self.get("/metrics").text, re.MULTILINE)}

    def until(self, test: Any, seconds: float = 60.0) -> None:
        """Wait until `test()` holds."""
        deadline = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < deadline, "it did not come to hold; the log: " + "".join(self.log[-20:])
            time.sleep(0.02)


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[Running]:
    """`octavo serve` with these arguments, at a free port."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    running = Running(process, "")

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.log.append(line)

    threading.Thread(target=read, daemon=True).start()
    try:
        while not running.url:
            assert process.poll() is None, "the server ended: " + "".join(running.log)
            assert time.monotonic() - start < READY_WITHIN, "the server does not start: " + "".join(running.log)
            found = re.search(r"at (https?://\S+)", "".join(running.log))
            running.url = found[1] if found else ""
            time.sleep(0.01)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
