"""What Mamba-2 costs beside attention, as context grows: `python bench/recurrent.py`.

Both mix a stream of 2,048 values: 64 heads of 64 values with states of 128, one group, as in Mamba-2's 1.3B; and 32
heads of attention of 64 values with 8 key heads. Only what is between the products is timed (convolution and scan;
rope, cache and attention). Prefill is of a whole prompt; a decode step is of one token after so many. Medians of a
few rounds, the two by turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from octavo.ops import AttentionSpec, Backend, HeadScanInput, RotaryTable, SequenceRun, select_backend
from octavo.ops.specs import CacheSpec

HEADS, HEAD_DIM, STATE, TAPS = 64, 64, 128, 4
QUERY_HEADS, KEY_HEADS, BLOCK = 32, 8, 16


def mamba2(backend: Backend, tokens: int, before: int) -> Callable[[], object]:
    """Convolution and scan of a run of `tokens` after `before`."""
    channels = HEADS * HEAD_DIM
    mixed = channels + 2 * STATE
    projected = torch.randn(tokens, channels + mixed + HEADS)
    gate, x, dt = projected.split_with_sizes([channels, mixed, HEADS], dim=1)
    history, state = backend.make_state((1, TAPS - 1, mixed)), backend.make_state((1, HEADS, STATE, HEAD_DIM))
    weight, bias, of_heads = torch.randn(mixed, TAPS), torch.randn(mixed), torch.rand(HEADS)
    plan = backend.plan_recurrent([SequenceRun(0, tokens, before, 0)])

    def run() -> object:
        y = backend.convolve(x, history, weight, bias, "silu", plan)
        inner, b, c = y.split_with_sizes([channels, STATE, STATE], dim=1)
        limit = 0.0, float("inf")
        inputs = HeadScanInput(inner, dt, of_heads, limit, -of_heads, b, c, of_heads, 1, gate, "silu")
        return backend.scan_heads(inputs, state, plan)

    return run


def attention(backend: Backend, tokens: int, before: int) -> Callable[[], object]:
    """Rope, the cache's write and attention of a run of `tokens` after `before`."""
    blocks = -(-(before + tokens) // BLOCK)
    cache = backend.make_cache(CacheSpec(KEY_HEADS, HEAD_DIM, HEAD_DIM), blocks, BLOCK, torch.float32)
    plan = backend.plan_attention(
        [SequenceRun(0, tokens, before, 0)], torch.arange(blocks).view(1, -1), BLOCK, None, tokens
    )
    qkv = torch.randn(tokens, (QUERY_HEADS + 2 * KEY_HEADS) * HEAD_DIM)
    spec = AttentionSpec(QUERY_HEADS, KEY_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
    table = RotaryTable((10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)).view(1, -1))
    positions = torch.arange(before, before + tokens)

    def run() -> object:
        return backend.attend(qkv.clone(), cache, plan, spec, backend.angles(table, positions, positions + 1))

    return run


def milliseconds(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Medians, one after the other in each round."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            function()
            begin = time.perf_counter()
            function()
            own.append(time.perf_counter() - begin)
    return [statistics.median(own) * 1000 for own in times]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    backend = select_backend("cpu", "auto")
    backend.set_threads(args.threads)
    print(f"{backend.name}, {args.threads} threads, milliseconds a layer\n")
    print("| | Mamba-2 | attention |\n| --- | --- | --- |")
    with backend.computing():
        for tokens in (512, 4096):
            pair = milliseconds([make(backend, tokens, 0) for make in (mamba2, attention)], args.rounds)
            print(f"| prefill of {tokens:,} | {pair[0]:.1f} | {pair[1]:.1f} |")
        for before in (512, 4096, 32768):
            pair = milliseconds([make(backend, 1, before) for make in (mamba2, attention)], args.rounds * 20)
            print(f"| decode after {before:,} | {pair[0]:.3f} | {pair[1]:.3f} |")


if __name__ == "__main__":
    main()
