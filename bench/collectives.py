"""What ranks on this machine spend on meeting: microseconds of one all_reduce, and of a send between stages.

    python bench/collectives.py [--ranks 2] [--threads 1] [--write]

Through the memory that they share, called one by one and in a recorded step, beside gloo's. A decode step has two
all_reduces for each layer, of one row for each sequence; a block of prefill has the same of 512 rows.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from document import printed

from octavo.ops import Backend, RankLink, RankPlace, select_backend
from octavo.ops.native import NativeBackend
from octavo.ops.native.recording import record
from octavo.rank_memory import shared_memory

WIDTH, BLOCK = 2048, 512
SHAPES = [(1, torch.float32), (1, torch.bfloat16), (16, torch.float32), (BLOCK, torch.float32), (BLOCK, torch.bfloat16)]
SECONDS = 0.2
"""That each figure is measured for."""


def measured(backend: Backend, run: Callable[[], object], calls: int = 1) -> float:
    """Microseconds of one of the `calls` in a run: the least mean of twenty in a row."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    (microseconds,) = backend.least([max(1, int(min(times) * 1e6))])  # all ranks repeat it as often
    repeats = min(max(4, int(SECONDS * 1e6 / microseconds / 20)), 1000)
    means = []
    for _ in range(20):
        backend.least([0])
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        means.append((time.perf_counter() - start) / repeats / calls * 1e6)
    return min(means)


def reduces(backend: Backend) -> list[list[float]]:
    """For each shape, called one by one and, of the compiled core, in a recorded step."""
    found = []
    for rows, dtype in SHAPES:
        x = torch.zeros(rows, WIDTH, dtype=dtype)
        times = [measured(backend, lambda x=x: backend.all_reduce(x))]  # type: ignore[misc]
        if isinstance(backend, NativeBackend):
            calls = 64 if rows < BLOCK else 4

            def step(x: torch.Tensor = x, calls: int = calls) -> tuple[torch.Tensor, ...]:
                for _ in range(calls):
                    backend.all_reduce(x)
                return (x,)

            program = record(backend.library, step, rows)
            times.append(measured(backend, lambda: program.run(rows), calls))  # noqa: B023
        found.append(times)
    return found


def passes(backend: Backend) -> list[list[float]]:
    """For each shape, from one stage to the next and back by `least`."""
    found = []
    for rows, dtype in SHAPES:
        x = torch.zeros(rows, WIDTH, dtype=dtype)

        def run(x: torch.Tensor = x) -> None:
            if backend.place.is_first_stage:
                backend.send(x)
            else:
                backend.receive(x.shape[0], WIDTH, x.dtype)

        found.append([measured(backend, run)])
    return found


def work(
    results: connection.Connection, ops: str, place: RankPlace, memory: Any, address: str, threads: int, tensor: bool
) -> None:
    backend = select_backend("cpu", ops)
    backend.set_threads(threads)
    with backend.computing():
        backend.join(place, RankLink(memory and memory.detach(), address))
        results.send(reduces(backend) if tensor else passes(backend))
        results.poll(None)
        backend.leave()


def in_ranks(ops: str, size: int, threads: int, tensor: bool) -> Any:
    """What rank 0 measures."""
    context, processes, ends = get_context("spawn"), [], []
    memory = shared_memory(size) if ops == "auto" else None
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(size):
            mine, theirs = context.Pipe()
            place = RankPlace(rank, size, size if tensor else 1)
            carried = (memory and DupFd(memory), f"file://{folder}/ranks")
            process = context.Process(target=work, args=(theirs, ops, place, *carried, threads, tensor))
            process.start()
            processes.append(process)
            ends.append(mine)
        found, *_ = [end.recv() for end in ends]
        for end in ends:
            end.send(None)
        for process in processes:
            process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    with printed("bench/collectives.py", options.write):
        native, gloo = (in_ranks(ops, options.ranks, options.threads, True) for ops in ("auto", "torch"))
        sends, gloo_sends = (in_ranks(ops, 2, options.threads, False) for ops in ("auto", "torch"))
        command = f"python bench/collectives.py --ranks {options.ranks} --threads {options.threads}"
        print(f"`{command}`: microseconds of one operation; sends are between two stages.\n")
        print(
            "| rows x 2048 | all_reduce, recorded | called | gloo | send | gloo |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: |"
        )
        for (rows, dtype), ours, theirs, sent, their_sent in zip(SHAPES, native, gloo, sends, gloo_sends, strict=True):
            figures = (ours[1], ours[0], theirs[0], sent[0], their_sent[0])
            name = str(dtype).removeprefix("torch.")
            print(f"| {rows}, {name} | " + " | ".join(f"{figure:,.1f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
