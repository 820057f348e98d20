"""Requests made from the server's own OpenAPI document, sound and broken: no error of the server's, no hang."""

import re
import subprocess
import sys
from pathlib import Path

from tests.server.running import server

EXAMPLES = 540
"""Most requests of each operation; some have fewer that differ. Together they are more than 5,000."""


def test_generated_requests(tiny_model: Path, tmp_path: Path) -> None:
    limits = ("--max-model-len", "64", "--request-timeout", "20")
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", *limits) as running:
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{running.url}/openapi.json",
            "--checks=not_a_server_error",
            f"--max-examples={EXAMPLES}",
            "--phases=fuzzing",
            "--mode=all",
            "--workers=4",
            "--request-timeout=30",
            "--seed=1",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stdout[-4000:]
        generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert generated
        assert int(generated[1]) == int(generated[2]) >= 5000
        assert running.get("/health").status_code == 200
        running.until(lambda: running.metric("num_requests_running") == 0)
        assert running.metric("engine_restarts_total") == 0
