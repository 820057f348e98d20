"""Embeddings of many texts: read and answered in windows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM
from octavo.cli.embed import ADDED_PER_STEP, embed_records
from octavo.cli.text_records import FileRecords, ListedRecords, PipedRecords, Record, Records
from octavo.errors import InvalidRequestError
from octavo.params import PoolingParams
from tests.server.conftest import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("embed") / "tiny")


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(str(model), kv_cache_memory="16MiB", task="embedding", dtype="float32")


class Counted(Records):
    """Many texts, of which it is known how many have been read."""

    def __init__(self, count: int) -> None:
        self.total, self.read = count, 0

    def next(self, wait: bool) -> Record | None:
        if self.read == self.total:
            raise StopIteration
        self.read += 1
        return {"text": f"text {self.read} " + "a" * (self.read % 7)}


def test_first_results_come_while_others_are_read(llm: LLM) -> None:
    records = Counted(500)
    embedded = embed_records(llm.requests, records, PoolingParams(), window=40)
    first = next(embedded)
    assert first[0]["text"] == "text 1 a"
    assert records.read <= 2 * ADDED_PER_STEP
    most = 0
    rows = [first[1]]
    for i, (_, row) in enumerate(embedded, 2):
        most = max(most, records.read - i)
        rows.append(row)
    assert (len(rows), most < 41) == (500, True)
    texts = [f"text {i} " + "a" * (i % 7) for i in (1, 250, 500)]
    expected = [output.outputs.embedding for output in llm.embed(texts, use_tqdm=False)]
    np.testing.assert_array_equal(np.stack([rows[0], rows[249], rows[499]]), np.array(expected, np.float32))


def test_what_is_left_early_leaves_nothing_behind(llm: LLM) -> None:
    embedded = embed_records(llm.requests, Counted(100), PoolingParams(), window=64)
    next(embedded)
    embedded.close()
    assert not llm.requests.has_work
    assert not llm.engine.has_work  # type: ignore[attr-defined]


def test_a_text_that_cannot_be_embedded_is_named(llm: LLM) -> None:
    records = ListedRecords(["fine", "a" * 5000, "fine"])
    with pytest.raises(InvalidRequestError, match=r"^text 2: "):
        list(embed_records(llm.requests, records, PoolingParams(), window=8))
    assert not llm.requests.has_work


def test_lines_of_a_pipe_are_taken_as_they_come() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as lines, os.fdopen(writing, "w") as out:
        records = PipedRecords(lines, is_json=False)
        out.write("one\n\n")
        out.flush()
        assert records.next(wait=True) == {"text": "one"}
        assert records.next(wait=False) is None
        out.write("two\n")
        out.close()
        assert records.next(wait=True) == {"text": "two"}
        with pytest.raises(StopIteration):
            records.next(wait=True)
        assert records.total == 2


def test_a_wrong_line_is_told_behind_what_came_before_it() -> None:
    records = PipedRecords(['"a"', "{oops"], is_json=True)
    assert records.next(wait=True) == {"text": "a"}
    with pytest.raises(InvalidRequestError, match="line 2 is not JSON"):
        records.next(wait=True)


@pytest.mark.parametrize("text", ['"fine"\n' * 50 + '{"id": 1}\n', ""])
def test_a_file_is_looked_through_before_anything_runs(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(InvalidRequestError, match="line 51 has no text" if text else "no text to embed"):
        FileRecords(str(tmp_path / "in.jsonl"), is_json=True).check()


def test_results_are_written_while_the_pipe_is_open(model: Path) -> None:
    """Who feeds it a line has that line's embedding before writing the next."""
    command = [sys.executable, "-m", "octavo", "embed", "--model", str(model), "--kv-cache-memory", "16MiB"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for index, text in enumerate(("red", "blue")):
            process.stdin.write(text + "\n")
            process.stdin.flush()
            got = json.loads(process.stdout.readline())
            assert (got["index"], got["text"]) == (index, text)
        process.stdin.close()
        assert process.wait(timeout=60) == 0
