"""Which device serves, with a stand-in for GPUs that are not here."""

from types import SimpleNamespace

import pytest
import torch

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.loading.model import _device
from octavo.ops import device_of_rank, select_backend
from octavo.rank_place import RankPlace


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(count=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: made.count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: made.count)
    return made


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(gpus: SimpleNamespace) -> None:
    assert [device_of_rank("cuda", rank, 4) for rank in range(4)] == [f"cuda:{n}" for n in range(4)]
    assert device_of_rank("auto", 1, 2) == "cuda:1"
    assert select_backend(device_of_rank("auto", 3, 4), "torch").device == torch.device("cuda:3")
    assert [device_of_rank("cuda", rank, 2, 3) for rank in range(6)] == [f"cuda:{n % 4}" for n in range(6)]
    assert device_of_rank("cuda:2", 1, 1, 2) == "cuda:2"
    assert device_of_rank("auto", 0, 1) == "auto"
    assert device_of_rank("cpu", 1, 4) == "cpu"
    gpus.count = 0
    assert device_of_rank("auto", 1, 4) == "auto"


def test_more_ranks_than_gpus_are_an_error(gpus: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"8 ranks need a GPU each, and there are 4\. Lower tensor_parallel_size"):
        device_of_rank("auto", 0, 8)
    with pytest.raises(ConfigError, match=r"2 ranks need a GPU each, and there is one in that name"):
        device_of_rank("cuda:1", 1, 2)


def test_options_say_which_rank_it_is(gpus: SimpleNamespace) -> None:
    args = EngineArgs(model="m", device="cuda", tensor_parallel_size=2, data_parallel_size=2, data_parallel_rank=1)
    assert _device(args, RankPlace(1, 2, 2)) == "cuda:3"
    args = EngineArgs(model="m", device="cuda", tensor_parallel_size=2, distributed_executor_backend="ray")
    assert _device(args, RankPlace(1, 2, 2)) == "cuda"
