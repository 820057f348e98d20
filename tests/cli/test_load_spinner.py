"""What a terminal shows while a model loads."""

import re
import sys
from pathlib import Path

import pytest

from tests.server.conftest import write_tiny

pexpect = pytest.importorskip("pexpect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("loading") / "tiny")


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "red", "--kv-cache-memory", "8MiB"],
        ["bench", "latency", "--runs", "1", "--input-len", "4", "--output-len", "2", "--kv-cache-memory", "8MiB"],
    ],
    ids=["embed", "bench"],
)
def test_a_terminal_shows_that_a_model_loads(model: Path, arguments: list[str]) -> None:
    command = ["-m", "octavo", *arguments, "--model", str(model)]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=180, dimensions=(24, 200))
    child.expect(f"Loading {re.escape(str(model))} \\(00:0")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
