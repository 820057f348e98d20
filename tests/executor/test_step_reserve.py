"""The memory that steps take, measured at load, with a stand-in for a device whose memory is its own."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError
from octavo.executor.local import LocalExecutor
from octavo.loading import model as loading
from octavo.loading import weight_loader
from octavo.ops.torch import TorchBackend
from tests.golden import case_named, write_model

TOTAL = 64 << 20


class Tally(TorchDispatchMode):
    """Counts the bytes of tensors that are made, while they live; `most` is the largest count."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = self.most = 0
        self._known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return made

    def _count(self, storage: Any, given: set[int]) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in given or address in self._known:
            return
        self._known.add(address)
        self.taken += size
        self.most = max(self.most, self.taken)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.taken -= size


class Device(TorchBackend):
    """The reference with memory of its own, of which weights have taken half."""

    measures_memory = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.measured: list[int] = []

    def free_memory(self) -> int:
        return TOTAL // 2

    def cache_budget(self, device_share: float) -> int:
        return max(0, int(TOTAL // 2 - TOTAL * (1 - device_share)))

    def measure_peak(self, function: Callable[[], object]) -> int:
        with Tally() as tally:
            function()
        self.measured.append(tally.most)
        return tally.most


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device(torch.device("cpu"))
    monkeypatch.setattr(loading, "select_backend", lambda *given: made)
    return made


def engine(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), **{"dtype": "float32", "skip_tokenizer_init": True, "max_num_seqs": 8, **options})


def executor(llm: LLM) -> LocalExecutor:
    made = llm.llm_engine._own_engine("a test").executor
    assert isinstance(made, LocalExecutor)
    return made


def cache_bytes(llm: LLM) -> int:
    return sum(t.nbytes for cache in executor(llm).runner.caches.paged if cache for t in {cache.keys, cache.values})


def test_caches_leave_what_steps_take(tiny_folder: Path, device: Device) -> None:
    """More tokens a step take more; the budget holds both; and no step of requests takes more than was measured."""
    sizes, options = [], {"gpu_memory_utilization": 0.6, "max_num_seqs": 32}
    for tokens in (64, 512):
        llm = engine(tiny_folder, max_num_batched_tokens=tokens, **options)
        sizes.append(cache_bytes(llm))
        assert sizes[-1] + device.measured[-1] <= device.cache_budget(0.6) + (1 << 16)  # the block that is nobody's
    assert device.measured[0] < device.measured[1]
    assert sizes[0] > sizes[1]
    prompts = [{"prompt_token_ids": [(7 * i + j) % 320 for j in range(100)]} for i in range(20)]
    with Tally() as tally:
        llm.generate(prompts, SamplingParams(temperature=1.0, top_p=0.9, logprobs=1, max_tokens=4, seed=1))
    assert 0 < tally.most <= device.measured[-1]


def test_nothing_is_measured_where_a_size_is_asked_for(tiny_folder: Path, device: Device) -> None:
    engine(tiny_folder, kv_cache_memory="1MiB")
    assert not device.measured


@pytest.mark.parametrize("name", ["MambaForCausalLM--130m", "LlamaModel--last-normalize", "Gemma2ForCausalLM--9b"])
def test_other_models_are_measured_too(name: str, tmp_path: Path, device: Device) -> None:
    """States of fixed size, a model without a vocabulary's logits, and windows."""
    case = case_named(name)
    llm = engine(write_model(case, tmp_path / "model"), gpu_memory_utilization=1.0)
    assert device.measured[0] > 0
    assert executor(llm).runner.shape.max_sequences == 8


def test_no_room_says_what_to_lower(tiny_folder: Path, device: Device) -> None:
    with pytest.raises(ConfigError, match=r"Steps take .* lower max_num_batched_tokens"):
        engine(tiny_folder, gpu_memory_utilization=0.51)


def test_no_room_for_weights(tiny_folder: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")

    monkeypatch.setattr(weight_loader.WeightLoader, "_place", full)
    with pytest.raises(ConfigError, match=r"ran out while weights were read.*quantization='int8'"):
        engine(tiny_folder)


def test_a_step_that_runs_out_says_what_to_lower() -> None:
    computing = TorchBackend(torch.device("cpu")).computing()
    with pytest.raises(torch.OutOfMemoryError, match=r"lower gpu_memory_utilization.*2 GiB"), computing:
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")
