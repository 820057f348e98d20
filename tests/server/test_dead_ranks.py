"""A server whose engine has ranks: when one of them dies, all who wait are told, and the engine is started again."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.server.running import Running, server
from tests.server.test_ending import WITHIN, folder, nothing_left

pytestmark = pytest.mark.alone

__all__ = ["folder"]

LONG = {"prompt": "x", "max_tokens": 1900, "ignore_eos": True, "n": 4}


def ranks(running: Running) -> list[psutil.Process]:
    """The processes below the engine's that compute."""
    children = psutil.Process(running.engine_pid()).children(recursive=True)
    return [child for child in children if any("process_worker" in part for part in child.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_a_rank_that_dies_or_hangs(tiny_model: Path, folder: Path, number: signal.Signals) -> None:
    options = ("--kv-cache-memory", "32MiB", "-tp", "2", "--distributed-timeout-seconds", "2", "--threads", "1")
    with server(str(tiny_model), *options, TMPDIR=str(folder)) as running, ThreadPoolExecutor(4) as pool:
        for victim in (0, 1):
            before = ranks(running)
            assert len(before) == 2
            stream = pool.submit(running.post, "/v1/completions", {**LONG, "stream": True})
            wholes = [pool.submit(running.post, "/v1/completions", LONG) for _ in range(3)]
            running.until(lambda: running.metric("num_requests_running") == 16, WITHIN)
            os.kill(before[victim].pid, number)
            for whole in wholes:
                assert whole.result().status_code == 503
                assert "died" in whole.result().json()["error"]["message"]
                assert whole.result().headers["Retry-After"]
            events = [line for line in stream.result().text.splitlines() if line]
            assert events[-1] == "data: [DONE]"
            assert json.loads(events[-2][6:])["error"]["code"] == 503
            running.until(lambda: running.get("/health").status_code == 200, WITHIN)
            assert running.post("/v1/completions", {"prompt": "x", "max_tokens": 3}).status_code == 200
            assert not any(process.is_running() and process.status() != "zombie" for process in before)
    nothing_left(folder)
    assert not list(Path("/dev/shm").glob("*octavo*"))
