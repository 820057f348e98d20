"""`octavo bench` with vLLM's flags, and loads of a server that answers as the test says."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.bench_prompts import file_prompts
from octavo.cli.bench_serve import load
from octavo.cli.main import build_parser, main
from octavo.errors import ConfigError

VLLM = {
    "latency": """--input-len 8 --output-len 4 --batch-size 2 --n 1 --num-iters-warmup 1 --num-iters 2
        --disable-detokenize --output-json x.json --max-model-len 64 -tp 1 --enforce-eager""",
    "throughput": """--backend vllm --dataset-name random --input-len 8 --output-len 4 --num-prompts 3 --num-warmups 0
        --output-json x.json --async-engine --disable-detokenize --lora-assignment random --prefix-len 2""",
    "startup": "--num-iters-cold 1 --num-iters-warmup 0 --num-iters-warm 1 --output-json x.json",
    "serve": """--backend openai-chat --base-url http://h:1 --endpoint /v1/chat/completions --dataset-name random
        --random-input-len 5 --random-output-len 6 --random-range-ratio 0.5 --num-prompts 4 --request-rate inf
        --burstiness 1 --max-concurrency 2 --ignore-eos --save-result --result-dir d --result-filename f
        --metadata a=b --seed 1
        --percentile-metrics ttft,tpot --metric-percentiles 50,99 --goodput ttft:100 --temperature 0.5 --top-p 0.9
        --tokenizer t --trust-remote-code --extra-body {"a":1} --disable-tqdm --num-warmups 1""",
}


@pytest.mark.parametrize("kind", VLLM)
def test_vllms_flags_are_taken(kind: str) -> None:
    parsed = build_parser().parse_args(["bench", kind, *VLLM[kind].split()])
    assert parsed.kind == kind
    if kind == "latency":
        assert (parsed.num_prompts, parsed.runs, parsed.warmups, parsed.output_len) == (2, 2, 1, 4)
    if kind == "serve":
        assert (parsed.input_len, parsed.output_len, parsed.url) == (5, 6, "http://h:1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latency", "--use-beam-search"], "--use-beam-search is not available"),
        (["throughput", "--backend", "hf"], "--backend hf is not available"),
        (["latency", "--warmups", "-1"], "at least 0"),
        (["throughput", "--dataset-name", "custom"], "needs its file, --dataset-path"),
        (["throughput", "--dataset-path", "x"], "needs --dataset-name"),
        (["throughput", "--dataset-name", "custom", "--dataset-path", "/nosuch"], "does not exist"),
        (["serve", "--goodput", "tfft:1"], "must be ttft:MS"),
        (["serve", "--metric-percentiles", "101"], "must be numbers such as"),
        (["serve", "--request-rate", "0"], "above 0"),
        (["serve", "--percentile-metrics", "tfft"], "'tfft' is unknown"),
        (["serve", "--header", "x"], "must be NAME=VALUE"),
        (["serve", "--endpoint", "/v1/other"], "is not measured"),
        (["serve", "--extra-body", "["], "--extra-body"),
        (["serve", "--ramp-up-strategy", "linear"], "is not available"),
        (["serve", "--url", "http://127.0.0.1:9"], "no server answers"),
    ],
)
def test_flags_that_cannot_be(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def namespace(tmp_path: Path, kind: str, text: str, count: int = 3) -> Any:
    (tmp_path / "prompts").write_text(text)
    given = ["--dataset-name", kind, "--dataset-path", str(tmp_path / "prompts"), "--num-prompts", str(count)]
    return build_parser().parse_args(["bench", "throughput", *given])


def test_prompts_of_files(tmp_path: Path) -> None:
    turns = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
        for q, a in (("q", "a"), ("r", "b"))
    ]
    broken: list[Any] = [{"conversations": [{"value": "alone"}]}, {"conversations": None}, 5]
    found = file_prompts(namespace(tmp_path, "sharegpt", json.dumps([*broken, *turns])))
    assert found == [("q", "a"), ("r", "b"), ("q", "a")]
    assert file_prompts(namespace(tmp_path, "custom", '{"prompt": "x"}\n\n{"prompt": "y"}\n', 2)) == [
        ("x", None),
        ("y", None),
    ]
    for kind, text in (
        ("sharegpt", "[]"),
        ("sharegpt", "{"),
        ("custom", ""),
        ("custom", '{"prompt": 5}'),
        ("custom", "[1"),
    ):
        with pytest.raises(ConfigError, match="--dataset-path"):
            file_prompts(namespace(tmp_path, kind, text))


class Handler(BaseHTTPRequestHandler):
    """Three tokens for each request."""

    seen: list[tuple[str, dict[str, str], dict[str, Any]]]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "m"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers.items()), body))
        events: list[Any] = [{"choices": [{"text": "a", "delta": {"content": "a"}}]}] * 3
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        events.append({"choices": [], "usage": usage})
        self._send(
            "".join(f"data: {json.dumps(e)}\n\n" for e in events).encode() + b"data: [DONE]\n\n", "text/event-stream"
        )


@pytest.fixture
def answering() -> Iterator[tuple[str, list[Any]]]:
    handler = type("Fresh", (Handler,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.seen
    server.shutdown()
    server.server_close()


def test_load_on_a_server(answering: tuple[str, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, seen = answering
    flags = [
        "--url",
        url,
        "--num-prompts",
        "4",
        "--num-warmups",
        "1",
        "--random-input-len",
        "10",
        "--random-range-ratio",
    ]
    flags += ["0.5", "--random-prefix-len", "2", "--temperature", "0.5", "--header", "X-A=b", "--goodput", "e2el:60000"]
    flags += [
        "--metric-percentiles",
        "50,99.9",
        "--save-detailed",
        "--result-dir",
        str(tmp_path),
        "--result-filename",
        "r.json",
    ]
    assert main(["bench", "serve", *flags, "--metadata", "who=me", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["requests"], result["failed"]) == (4, 0)
    assert set(result["ttft_ms"]) == {"mean", "p50", "p99.9"}
    assert result["goodput"] > 0
    assert len(seen) == 5
    path, headers, body = seen[-1]
    assert (path, body["model"], body["temperature"], body["max_tokens"]) == ("/v1/completions", "m", 0.5, 64)
    assert headers["X-A"] == "b"
    assert headers["X-Request-Id"].startswith("bench-")
    assert {tuple(one["prompt"][:2]) for _, _, one in seen} == {(17, 18)}
    assert all(2 + 5 <= len(one["prompt"]) <= 2 + 15 for _, _, one in seen)
    kept = json.loads((tmp_path / "r.json").read_text())
    assert (kept["who"], len(kept["requests_detailed"])) == ("me", 4)


def test_load_of_chats(answering: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, seen = answering
    (tmp_path / "p").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    flags = ["--base-url", url + "/v1", "--backend", "openai-chat", "--num-prompts", "3", "--extra-body", '{"x": 1}']
    flags += ["--dataset-name", "custom", "--dataset-path", str(tmp_path / "p"), "--api-key", "k"]
    outcomes, _ = asyncio.run(load(build_parser().parse_args(["bench", "serve", *flags])))
    assert [one.error for one in outcomes] == [None] * 3
    assert {path for path, _, _ in seen} == {"/v1/chat/completions"}
    assert sorted(body["messages"][0]["content"] for _, _, body in seen) == ["one", "one", "two"]
    assert all(body["x"] == 1 and headers["Authorization"] == "Bearer k" for _, headers, body in seen)
