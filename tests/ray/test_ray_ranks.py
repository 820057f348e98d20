"""Ranks as actors of a Ray cluster: where they are, what they answer, and how their end is told."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray")

import ray
from ray.util import placement_group_table

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import ConfigError, EngineDeadError
from octavo.executor import ray_ranks
from octavo.executor.process import Failed, decode_reply
from octavo.executor.rank_executor import RankExecutor
from octavo.executor.ray_ranks import RayRanks
from tests.golden import case_named
from tests.ray.conftest import add_machine
from tests.test_golden import answers, load

pytestmark = pytest.mark.alone

WITHIN = 60
"""Seconds in which what must happen does, on a machine that has much else to do."""


@pytest.fixture
def driver(cluster: Any) -> Iterator[Any]:
    """A connection of the test's own, which sees what ranks leave behind."""
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    yield cluster
    assert groups() == []
    ray.shutdown()


def args(**options: Any) -> EngineArgs:
    return EngineArgs(**{"tensor_parallel_size": 2, "distributed_executor_backend": "ray", **options})


def groups() -> list[str]:
    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


def nodes_of(ranks: RayRanks) -> list[str]:
    return ray.get([actor.node.remote() for actor in ranks.actors])


def pids_of(ranks: RayRanks) -> list[int]:
    return ray.get([actor.pid.remote() for actor in ranks.actors])


def ranks_of(llm: LLM) -> RayRanks:
    assert isinstance(llm.engine.executor, RankExecutor)
    ranks = llm.engine.executor._ranks
    assert isinstance(ranks, RayRanks)
    return ranks


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(pids: list[int]) -> None:
    end = time.monotonic() + WITHIN
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < end, "they are still there"
        time.sleep(0.1)


def test_a_rank_on_each_machine_until_the_end(driver: Any) -> None:
    ranks = RayRanks(args())
    assert ranks.threads == 1
    loads = ranks.loads(args())
    assert [load.place.rank for load in loads] == [0, 1]
    assert {load.link.address for load in loads} == {ranks.address}
    assert len(set(nodes_of(ranks))) == 2
    pids = pids_of(ranks)
    assert ranks.receive(0) == ranks.receive(0.01) == []
    for _ in range(2):
        for rank in range(2):
            ranks.send(rank, b"no message")
    came = [one for _ in range(4) for one in ranks.receive(None if len(ranks._awaited[0]) else 1)]
    assert sorted(rank for rank, _ in came) == [0, 0, 1, 1]
    for _, message in came:
        assert message is not None
        assert isinstance(decode_reply(message), Failed)
    ranks.close()
    ranks.close()  # a second time changes nothing
    assert_gone(pids)
    assert ray.is_initialized(), "the connection is the test's own"


def test_ranks_of_a_machine_follow_each_other(driver: Any) -> None:
    big = driver.add_node(num_cpus=2, object_store_memory=80 << 20)
    ranks = RayRanks(args(pipeline_parallel_size=2))
    nodes = nodes_of(ranks)
    assert nodes[0] == nodes[1] == big.node_id
    assert len(set(nodes)) == 3
    ranks.close()
    driver.remove_node(big)


def test_a_stopped_rank_is_ended(driver: Any) -> None:
    ranks = RayRanks(args())
    pids = pids_of(ranks)
    os.kill(pids[0], signal.SIGSTOP)
    ranks.send(0, b"")
    ranks.close()
    assert_gone(pids)


def test_no_room_is_an_error(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_ranks, "PLACED_WITHIN", 1.0)
    with pytest.raises(ConfigError, match="no room for 2 ranks with 64 CPU each"):
        RayRanks(args(threads=64))
    with pytest.raises(ConfigError, match="no room for 9 ranks"):
        RayRanks(args(tensor_parallel_size=9))


def test_a_cluster_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"at RAY_ADDRESS=127\.0\.0\.1:1 cannot be reached"):
        RayRanks(args())


# --- with a model


def check(llm: LLM, case: dict[str, Any]) -> None:
    """It answers as the reference does; tests/test_golden.py looks closer."""
    for output, expected in zip(answers(llm, case), case["cases"], strict=True):
        assert output.outputs[0].token_ids == expected["output_token_ids"]


@pytest.mark.parametrize("layout", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_golden_case_on_two_machines(cluster: Any, layout: str, tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--gqa-tied")
    llm = load(case, tmp_path, distributed_executor_backend="ray", kv_cache_memory="4MiB", **{layout: 2})
    assert len(set(nodes_of(ranks_of(llm)))) == 2
    check(llm, case)
    llm.engine.executor.close()
    assert not ray.is_initialized(), "nobody else in this process is connected"


def test_one_rank_can_be_elsewhere(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's path begins where the engine is, not where Ray was started."""
    case = case_named("LlamaForCausalLM--gqa-tied")
    monkeypatch.chdir(tmp_path)
    llm = load(case, Path("here"), distributed_executor_backend="ray", kv_cache_memory="4MiB")
    check(llm, case)
    llm.engine.executor.close()


def run_until_error(llm: LLM, while_idle: bool) -> str:
    """The error that says that a rank has ended, in a step or between two of them."""
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    executor = llm.engine.executor
    assert isinstance(executor, RankExecutor)
    try:
        for _ in range(100_000):
            if while_idle:
                time.sleep(0.05)
                executor.check()
            else:
                llm.generate([[1, 2, 3]], params, use_tqdm=False)
    except EngineDeadError as error:
        return str(error)
    return "nothing happened"


@pytest.mark.parametrize("ends", ["process", "machine"])
def test_an_end_is_an_error(driver: Any, ends: str, tiny_folder: Path) -> None:
    """Of a process while nothing runs, and of a machine in the middle of steps."""
    options: Any = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    llm = LLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="4MiB", **options)
    node_id, pids = nodes_of(ranks_of(llm))[1], pids_of(ranks_of(llm))
    (machine,) = [node for node in driver.list_all_nodes() if node.node_id == node_id]
    end = threading.Thread(target=lambda: driver.remove_node(machine, allow_graceful=False))
    if ends == "machine":
        end.start()
    else:
        os.kill(pids[1], signal.SIGKILL)
    error = run_until_error(llm, while_idle=ends == "process")
    assert "the engine has stopped: " in error
    assert "rank 1" in error
    if ends == "machine":
        end.join()
        add_machine(driver)
    else:
        assert f"rank 1 on {ray.util.get_node_ip_address()} has ended (" in error
    assert_gone(pids)
