"""However a server ends, and whenever: no process of it goes on, and no folder stays."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.server.running import server

pytestmark = pytest.mark.alone

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]
LOAD = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "n": 8}
WITHIN = 60.0
"""Seconds after which a test gives up."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files, by which a server's processes are known."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="oct") as name:
        yield Path(name)


def processes(folder: Path) -> list[psutil.Process]:
    """The engines whose temporary files are in the folder, and what has it as an argument."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            is_engine = "engine_process" in command and process.environ().get("TMPDIR") == str(folder)
            if process.status() != psutil.STATUS_ZOMBIE and (is_engine or str(folder) in command):
                found.append(process)
        except psutil.Error:
            continue
    return found


def goes_on(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def until(test: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not test():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def nothing_left(folder: Path) -> None:
    until(lambda: not processes(folder), "the engine's process goes on")
    until(lambda: not list(folder.iterdir()), f"files are left: {list(folder.iterdir())}")


def start(model: Path, folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0", "--kv-cache-memory", "64MiB"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(folder)})


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
@pytest.mark.parametrize("moment", range(5))
def test_while_it_loads(tiny_model: Path, folder: Path, number: signal.Signals, moment: int) -> None:
    """From the first import to the last weight."""
    process = start(tiny_model, folder)
    try:
        if moment:
            until(lambda: processes(folder), "there is no engine")
        delay = random.Random(f"{number}{moment}").uniform(0.0, 0.3 if moment < 3 else 1.5)
        time.sleep(delay)
        process.send_signal(number)
        status = process.wait(WITHIN)
        if moment and number != signal.SIGKILL:
            assert status == 0
    finally:
        process.kill()
        process.wait()
    nothing_left(folder)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
@pytest.mark.parametrize("loaded", [False, True], ids=["idle", "under load"])
def test_while_it_serves(tiny_model: Path, folder: Path, number: signal.Signals, loaded: bool) -> None:
    limits = ("--kv-cache-memory", "64MiB", "--shutdown-timeout", "1")
    with server(str(tiny_model), *limits, TMPDIR=str(folder)) as running:
        assert [p.pid for p in processes(folder)] == [running.engine_pid()]
        assert not list(folder.iterdir())

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(running.url + "/v1/completions", json=LOAD, timeout=WITHIN)

        if loaded:
            threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            running.until(lambda: running.metric("num_requests_running") > 8)
        running.process.send_signal(number)
        assert running.process.wait(WITHIN) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    nothing_left(folder)


def test_an_engine_that_is_started_again_ends_too(tiny_model: Path, folder: Path) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", TMPDIR=str(folder)) as running:
        os.kill(running.engine_pid(), signal.SIGKILL)
        running.until(lambda: running.get("/health").status_code == 503)
        running.until(lambda: processes(folder), WITHIN)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(WITHIN)
    nothing_left(folder)


def test_without_the_kernels_help(folder: Path) -> None:
    """On systems that tell nobody of a parent's death, the end of the engine's input does."""
    program = (
        "import subprocess, sys\n"
        "child = '''import sys, time\n"
        'sys.platform = "darwin"\n'
        "from octavo.parent_process import end_with_parent\n"
        "end_with_parent(int(sys.argv[1]))\n"
        'print("ready", flush=True)\n'
        "time.sleep(600)'''\n"
        "import os\n"
        "p = subprocess.Popen([sys.executable, '-c', child, str(os.getpid()), sys.argv[1]], stdin=subprocess.PIPE)\n"
        "p.wait()\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    until(lambda: not processes(folder), "the child goes on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_all_that_was_started_ends(tiny_model: Path, folder: Path, number: signal.Signals) -> None:
    """Ranks, grammars and templates too, each in the midst of its work."""
    options = ("--kv-cache-memory", "64MiB", "--shutdown-timeout", "1", "--tensor-parallel-size", "2")
    with server(str(tiny_model), *options, TMPDIR=str(folder)) as running:
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1500, "n": 4}
        bodies = [("/v1/completions", LOAD), ("/v1/chat/completions", {**chat, "guided_regex": "a{1400}"})]

        def ask(path: str, body: dict[str, object]) -> None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.post(running.url + path, json=body, timeout=WITHIN)

        for path, body in bodies:
            threading.Thread(target=ask, args=(path, body), daemon=True).start()
        running.until(lambda: running.metric("num_requests_running") >= 12)
        started = psutil.Process(running.process.pid).children(recursive=True)
        assert len(started) >= 4  # two ranks, what finds masks, what renders
        running.process.send_signal(number)
        running.process.wait(WITHIN)

        until(lambda: not any(map(goes_on, started)), "processes go on")
