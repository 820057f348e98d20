"""`octavo run-batch`: files of requests in, files of answers out."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo.cli.run_batch import Output, opened_input
from octavo.errors import ConfigError
from tests.server.conftest import write_tiny

SMALL = ["--kv-cache-memory", "16MiB", "--max-model-len", "256", "--max-num-seqs", "4"]


def line(number: int, url: str = "/v1/completions", **body: Any) -> str:
    return json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": body})


def test_answers_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "not-needed-from-within")
    model = write_tiny(tmp_path / "tiny")
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
    lines = [line(i, prompt="abc", max_tokens=12 - i, temperature=0) for i in range(6)]
    lines += [line(6, "/v1/chat/completions", **chat), "", line(7, prompt="a", temperature=-1), line(8, "/v1/nowhere")]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out.jsonl"
    given = [str(model), "-i", str(tmp_path / "in.jsonl"), "-o", str(out), "--max-inflight", "3"]
    assert main(["run-batch", *given, "--served-model-name", "tiny", *SMALL]) == 0
    answers = [json.loads(one) for one in out.read_text().splitlines()]
    assert [one["custom_id"] for one in answers[:8]] == [f"r{i}" for i in range(8)]
    assert len(answers) == 9
    for i, one in enumerate(answers[:6]):
        assert one["response"]["status_code"] == 200
        assert one["response"]["body"]["usage"]["completion_tokens"] <= 12 - i
        assert one["response"]["body"]["model"] == "tiny"
    assert answers[6]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert answers[7]["response"]["status_code"] == 400
    assert "9 requests are answered, 2 of them with an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i", "/nosuch", "-o", "out"], "--input-file /nosuch cannot be read"),
        (["-i", "http://127.0.0.1:9/x", "-o", "out"], "cannot be read"),
        (["-i", "in", "-o", "/nosuch/out"], "--output-file /nosuch/out cannot be written"),
        (["-i", "in", "-o", "out", "--max-inflight", "0"], "at least 1"),
        (["-i", "in", "-o", "out", "--model", "./nosuch"], "was not found"),
    ],
)
def test_what_cannot_be(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text(line(0, prompt="a"))
    assert main(["run-batch", *arguments]) == 1
    assert said in capsys.readouterr().err


class Store(BaseHTTPRequestHandler):
    """A place that files are fetched from and put to."""

    kept: dict[str, bytes]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        data = self.kept[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.path == "/full" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def store() -> Iterator[tuple[str, dict[str, bytes]]]:
    handler = type("Fresh", (Store,), {"kept": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.kept
    server.shutdown()
    server.server_close()


def test_files_at_urls(store: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    url, kept = store
    kept["/in"] = b"one\ntwo\n"
    with opened_input(url + "/in", str(tmp_path)) as file:
        assert file.read() == b"one\ntwo\n"
        file.seek(0)
        assert file.read() == b"one\ntwo\n"
    output = Output(url + "/out", None)
    output.write(b"a\n")
    output.write(b"b\n")
    output.close()
    assert kept["/out"] == b"a\nb\n"
    output = Output(url + "/full", None)
    with pytest.raises(ConfigError, match="cannot be written"):
        output.close()
