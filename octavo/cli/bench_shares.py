"""Which share of the machine's memory bandwidth and of its products' pace a model reaches, both measured here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from octavo.engine.engine import Engine
from octavo.executor.local import LocalExecutor
from octavo.executor.step_work import StepWork
from octavo.llm import LLM
from octavo.ops import Backend
from octavo.outputs import RequestOutput

TIMES = 5
"""Each is measured so often, and the best counts: it is what the machine can do."""
READ = {"cpu": 512 << 20, "cuda": 2 << 30}
"""Bytes that are read: more than caches hold."""
WIDTH = {"cpu": 1536, "cuda": 8192}
"""Of the square matrices that are multiplied."""
MEMORY_SHARE, MATRIX_SHARE = "memory_bandwidth_share", "matrix_peak_share"


@dataclass(frozen=True)
class Peaks:
    """What the machine does at best, of what a step does: PyTorch's sums, copies and products."""

    bandwidth: float
    """Bytes a second, read in a sum, or read and written in a copy, whichever are more."""
    multiply_adds: float
    """A second, in a product of large matrices."""
    dtype: str
    """Of those."""


def _best(backend: Backend, function: Callable[[], object]) -> float:
    """Seconds of the quickest of some runs, the first aside."""
    on_gpu, found = backend.device.type == "cuda", []
    for _ in range(1 + TIMES):
        if on_gpu:
            torch.cuda.synchronize(backend.device)
        start = time.perf_counter()
        function()
        if on_gpu:
            torch.cuda.synchronize(backend.device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _bandwidth(backend: Backend, size: int) -> float:
    read, written = (torch.ones(size // 4, device=backend.device) for _ in range(2))
    summed, copied = _best(backend, read.sum), _best(backend, partial(written.copy_, read))
    return max(read.nbytes / summed, 2 * read.nbytes / copied)


def measure_peaks(backend: Backend, dtype: torch.dtype, size: int | None = None, width: int | None = None) -> Peaks:
    """The peaks of the machine that `backend` computes on, with as many threads as it has.

    Args:
        dtype: of weights. On processors float32 is tried as well, and the faster counts: not all multiply bfloat16.
        size: bytes that are read; None for more than caches hold, or an eighth of the memory that is free.
        width: of matrices; None for large ones.
    """
    device, before = backend.device, torch.get_num_threads()
    torch.set_num_threads(backend.threads)
    try:
        size = size or min(READ[device.type], backend.free_memory() // 8)
        bandwidth = _bandwidth(backend, size)
        width, found = width or WIDTH[device.type], dict[torch.dtype, float]()
        for each in {dtype, torch.float32} if device.type == "cpu" else {dtype}:
            matrix = torch.ones(width, width, dtype=each, device=device)
            found[each] = width**3 / _best(backend, partial(torch.matmul, matrix, matrix))
    finally:
        torch.set_num_threads(before)
    best = max(found, key=lambda each: found[each])
    return Peaks(bandwidth, found[best], str(best).removeprefix("torch."))


class Shares:
    """The shares that runs of a benchmark reach.

    Args:
        work: what the model's steps read and multiply.
        peaks: of the machine.
    """

    def __init__(self, work: StepWork, peaks: Peaks) -> None:
        self._work, self._peaks = work, peaks

    @property
    def measured(self) -> dict[str, float]:
        """The peaks by their names in a benchmark's results, in GB/s and in thousand million multiply-adds a second."""
        return {
            "memory_gbytes_per_second": self._peaks.bandwidth / 1e9,
            f"{self._peaks.dtype}_gmultiply_adds_per_second": self._peaks.multiply_adds / 1e9,
        }

    def of_prompts(self, outputs: Sequence[RequestOutput], seconds: float) -> float:
        """The share of the products' pace in a prefill that took so long: each prompt's tokens, and a row of logits."""
        products = _computed(outputs) * self._work.multiply_adds + len(outputs) * self._work.head_multiply_adds
        return products / seconds / self._peaks.multiply_adds

    def of_decode(self, outputs: Sequence[RequestOutput], seconds: float) -> float:
        """The share of bandwidth where all answers grow together, `seconds` being from token to token."""
        steps = max(1, len(outputs[0].outputs[0].token_ids) - 1)
        read = self._work.weights_read(len(outputs)) + self._sequences_read(outputs) / steps
        return read / seconds / self._peaks.bandwidth

    def of_run(self, outputs: Sequence[RequestOutput], steps: int, seconds: float) -> tuple[float, float]:
        """Both shares, of bandwidth and of the products' pace, in a run of so many steps."""
        answered = sum(len(output.outputs[0].token_ids) for output in outputs)
        tokens = _computed(outputs) + answered - len(outputs)
        read = steps * self._work.weights_read(tokens / max(1, steps)) + self._sequences_read(outputs)
        products = tokens * self._work.multiply_adds + answered * self._work.head_multiply_adds
        return read / seconds / self._peaks.bandwidth, products / seconds / self._peaks.multiply_adds

    def _sequences_read(self, outputs: Sequence[RequestOutput]) -> float:
        """Bytes that all steps of decode read of keys, values and states."""
        return sum(
            self._work.sequence_read(len(output.prompt_token_ids or ()) + after)
            for output in outputs
            for after in range(1, len(output.outputs[0].token_ids))
        )


def _computed(outputs: Sequence[RequestOutput]) -> int:
    """Tokens of prompts that the prefix cache did not have."""
    return sum(len(output.prompt_token_ids or ()) - (output.num_cached_tokens or 0) for output in outputs)


def shares_of(llm: LLM) -> Shares | None:
    """Of an engine whose model runs in this process and takes a step for each token; None for others.

    The machine is measured here, in the dtype that weights are held in, which takes a second or two.
    """
    engine = llm.engine
    if not isinstance(engine, Engine) or not isinstance(engine.executor, LocalExecutor):
        return None
    if engine.args.speculation is not None or engine.info.task != "generate":
        return None
    executor = engine.executor
    return Shares(executor.work, measure_peaks(executor.runner.backend, executor.weights_dtype))
