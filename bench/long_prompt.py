"""What a long prompt does to a running stream: `python bench/long_prompt.py [--write]`, about two minutes.

The model of `make demo` with one stream, beside which a prompt of 1,800 tokens is computed: the gaps between the
stream's tokens meanwhile, and how long the prompt takes, for limits of a step's time (`--max-step-ms`). The first round
warms up: the limit learns how many tokens fit.
"""

import argparse
import contextlib
import logging
import selectors
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import document
from lean_client import connect, request_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))

from served import BODY, FLAGS, MODEL

from tests.server.running import server

LONG = 1800
"""Tokens of the long prompt."""
LIMITS = (None, 100, 50, 25)
"""Milliseconds of a step."""
ALONE = 16
"""Tokens of the stream before the long prompt is sent."""


def beside(url: str, seed: int) -> tuple[list[float], float]:
    """Gaps between the stream's tokens while the long prompt is computed, and how long that takes; seconds."""
    prompt = [(7 * i + 131 * seed) % 9000 + 100 for i in range(LONG)]
    tokens = {**BODY, "prompt": [9707, 28, 314 + seed], "max_tokens": 1024, "return_token_ids": True}
    stamps, sent, answered = list[float](), 0.0, 0.0
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        stream, other = (stack.enter_context(contextlib.closing(connect(url))) for _ in range(2))
        for each in (stream, other):
            selector.register(each, selectors.EVENT_READ)
        stream.sendall(request_bytes("/v1/completions", tokens))
        while not answered or stamps[-1] < answered:  # so that the last gap is whole
            for key, _ in selector.select():
                lane: Any = key.fileobj
                data, now = lane.recv(1 << 16), time.perf_counter()
                assert data, "the server has closed a connection"
                if lane is other:
                    answered = answered or now
                else:
                    stamps += [now] * data.count(b"data: {")
            if len(stamps) >= ALONE and not sent:
                sent = time.perf_counter()
                other.sendall(request_bytes("/v1/completions", {**BODY, "prompt": prompt, "max_tokens": 1}))
    return [end - begin for begin, end in pairwise(stamps) if end > sent], answered - sent


def measure(rounds: int) -> None:
    """The table, in Markdown."""
    print("| --max-step-ms | the stream's gaps, median | largest (median of rounds) | the prompt's first token |")
    print("| --- | ---: | ---: | ---: |")
    for limit in LIMITS:
        flags = () if limit is None else ("--max-step-ms", str(limit))
        with server(MODEL, *FLAGS, *flags) as running:
            found = [beside(running.url, seed) for seed in range(rounds + 1)][1:]
        gaps = 1e3 * statistics.median(gap for gaps, _ in found for gap in gaps)
        largest = 1e3 * statistics.median(max(gaps) for gaps, _ in found)
        took = 1e3 * statistics.median(took for _, took in found)
        print(f"| {limit or 'none'} | {gaps:.0f} ms | {largest:.0f} ms | {took:.0f} ms |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how many count (default: 5)")
    parser.add_argument("--write", action="store_true", help="write what is measured into docs/performance.md")
    logging.getLogger("octavo").setLevel(logging.ERROR)
    options = parser.parse_args()
    with document.printed("bench/long_prompt.py", options.write):
        measure(options.rounds)
