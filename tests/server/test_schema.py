"""Requests made from the server's own OpenAPI document, sound and broken: no error of the server's, no hang."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.running import server

EXAMPLES = 20
"""Most random requests of each operation; some have fewer that differ."""
ALL_EXAMPLES = 540
"""The same with --all-requests (`make requests`). Its seed does not change, so that every run draws the same ones."""


def test_generated_requests(tiny_model: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each keyword of each field's schema, at its bounds and beyond them, in turn; then some at random, four at once.

    Those in turn are made by one thread: Python 3.11's `ast`, which the program reads its own lambdas with, fails now
    and then in several.
    """
    examples = ALL_EXAMPLES if pytestconfig.getoption("--all-requests") else EXAMPLES
    limits = ("--max-model-len", "64", "--request-timeout", "20")
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", *limits) as running:
        total = 0
        for phase, workers in (("coverage", 1), ("fuzzing", 4)):
            command = [
                str(Path(sys.executable).parent / "schemathesis"),
                "run",
                f"{running.url}/openapi.json",
                "--checks=not_a_server_error",
                f"--max-examples={examples}",
                f"--phases={phase}",
                "--mode=all",
                f"--workers={workers}",
                "--request-timeout=30",
                "--seed=1",
            ]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
            assert done.returncode == 0, done.stdout[-4000:]
            generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
            assert generated, done.stdout[-4000:]
            assert int(generated[1]) == int(generated[2]) > 0
            total += int(generated[1])
        assert total >= 5000
        assert running.get("/health").status_code == 200
        running.until(lambda: running.metric("num_requests_running") == 0)
        assert running.metric("engine_restarts_total") == 0
