"""What steps read and multiply, and the shares of the machine's peaks that this makes."""

from pathlib import Path

import pytest
import torch

from octavo import LLM
from octavo.cli.bench_shares import Peaks, Shares, measure_peaks, shares_of
from octavo.config import EngineArgs
from octavo.executor.step_work import StepWork, step_work
from octavo.loading.model import load_model
from octavo.ops import select_backend
from octavo.outputs import CompletionOutput, RequestOutput
from tests.golden import case_named, write_model

HIDDEN, INNER, LAYERS, VOCAB, KV = 64, 96, 2, 320, 2 * 16
ATTENTION, EXPERT = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV, 3 * HIDDEN * INNER
NORMS = 4 * HIDDEN * (2 * LAYERS + 1)


def work_of(name: str, folder: Path, **options: str) -> StepWork:
    path = str(write_model(case_named(name), folder / name))
    args = EngineArgs(model=path, skip_tokenizer_init=True, dtype="float32", **options)  # type: ignore[arg-type]
    return step_work(load_model(args), args.block_size)


def test_the_work_of_a_tied_llama(tmp_path: Path) -> None:
    work = work_of("LlamaForCausalLM--gqa-tied", tmp_path)
    assert work.multiply_adds == LAYERS * (ATTENTION + EXPERT)
    assert work.head_multiply_adds == VOCAB * HIDDEN
    assert work.weight_bytes == 4 * (work.multiply_adds + work.head_multiply_adds) + NORMS
    assert work.expert_bytes == {}
    assert work.key_bytes == ((None, 4 * 2 * KV),) * LAYERS
    assert work.sequence_read(100) == 100 * LAYERS * 4 * 2 * KV
    rounded = work_of("LlamaForCausalLM--gqa-tied", tmp_path / "q", quantization="int8")
    assert rounded.weight_bytes == (work.multiply_adds + work.head_multiply_adds) * 34 / 32 + NORMS


def test_the_work_of_experts_and_windows(tmp_path: Path) -> None:
    work = work_of("MixtralForCausalLM--8x7b", tmp_path)
    assert work.multiply_adds == LAYERS * (ATTENTION + 4 * HIDDEN + 2 * EXPERT)
    assert work.expert_bytes == {0.5: LAYERS * 4 * 4 * EXPERT}
    # Two of four experts for one row; in large steps all of them; the token table is not read whole.
    assert work.weights_read(1) - work.weight_bytes == LAYERS * 2 * 4 * EXPERT
    assert work.weights_read(50) - work.weight_bytes == pytest.approx(LAYERS * 4 * 4 * EXPERT)
    assert work.weight_bytes == 4 * (LAYERS * (ATTENTION + 4 * HIDDEN) + VOCAB * HIDDEN) + NORMS
    windowed = work_of("MistralForCausalLM--v0.1-window", tmp_path)
    (window, size), *_ = windowed.key_bytes
    assert window is not None
    assert windowed.sequence_read(10 * window) == windowed.sequence_read(window) == LAYERS * window * size


def test_the_work_of_a_state(tmp_path: Path) -> None:
    work = work_of("MambaForCausalLM--130m", tmp_path)
    assert work.key_bytes == ()
    assert work.sequence_read(1) == work.sequence_read(1000) == 2 * work.state_bytes > 0


def output(prompt: int, answer: int, cached: int = 0) -> RequestOutput:
    completion = CompletionOutput(0, "", [5] * answer, None, None)
    return RequestOutput("a", None, [1] * prompt, None, [completion], True, num_cached_tokens=cached)


def test_shares() -> None:
    work = StepWork(1000, {}, 50.0, 10, ((None, 2.0), (4, 1.0)), 0)
    shares = Shares(work, Peaks(10_000.0, 100_000.0, "float32"))
    outputs = [output(8, 3), output(8, 3, cached=6)]
    assert shares.of_prompts(outputs, 0.5) == pytest.approx(((8 + 2) * 50 + 2 * 10) / 0.5 / 100_000)
    kept = 2 * ((9 * 2 + 4) + (10 * 2 + 4))  # of two sequences, the second and third token
    assert shares.of_decode(outputs, 0.25) == pytest.approx((1000 + kept / 2) / 0.25 / 10_000)
    bandwidth, products = shares.of_run(outputs, 3, 2.0)
    assert bandwidth == pytest.approx((3 * 1000 + kept) / 2 / 10_000)
    assert products == pytest.approx(((10 + 4) * 50 + 6 * 10) / 2 / 100_000)
    assert shares.measured == {"memory_gbytes_per_second": 1e-5, "float32_gmultiply_adds_per_second": 1e-4}


def test_peaks_are_measured_with_the_engines_threads() -> None:
    before = torch.get_num_threads()
    peaks = measure_peaks(select_backend("cpu"), torch.bfloat16, size=1 << 20, width=64)
    assert peaks.bandwidth > 0
    assert peaks.multiply_adds > 0
    assert peaks.dtype in ("bfloat16", "float32")
    assert torch.get_num_threads() == before


def test_only_what_takes_a_step_a_token_has_shares(tiny_folder: Path) -> None:
    guessing = LLM(
        str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="8MiB",
        speculative_config={"method": "ngram", "num_speculative_tokens": 2},
    )  # fmt: skip
    assert shares_of(guessing) is None
