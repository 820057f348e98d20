"""`octavo serve` with ranks on a Ray cluster: a machine that goes, and SIGTERM under load."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray.util import placement_group_table

from tests.ray.conftest import add_machine
from tests.server.conftest import write_tiny
from tests.server.running import Running, server

pytestmark = pytest.mark.alone

REQUEST = {"prompt": "Hello", "temperature": 0, "max_tokens": 8, "ignore_eos": True}
PROMPTS = ["Hello", "Once upon a time", "The", "What is photosynthesis?"]
RAY = ["--distributed-executor-backend", "ray", "--kv-cache-memory", "16MiB"]


def answers(running: Running, **changes: Any) -> Any:
    return running.post("/v1/completions", {**REQUEST, **changes})


def groups() -> list[str]:
    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.fixture
def driver(cluster: Any) -> Iterator[Any]:
    """A connection of the test's own, which sees what a server leaves behind."""
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    yield cluster
    for _ in range(600):
        if not groups() and ray.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    assert groups() == []
    assert ray.available_resources()["CPU"] == 2, "a rank is left"
    ray.shutdown()


@pytest.mark.slow
def test_a_machine_goes_and_comes_and_then_the_server_ends(driver: Any, tmp_path: Path) -> None:
    options = ["--tensor-parallel-size", "2", *RAY, "--shutdown-timeout", "1"]
    with server(str(write_tiny(tmp_path / "tiny")), *options, RAY_ADDRESS=driver.address) as running:
        before = answers(running).json()["choices"]
        statuses = list[int]()
        waiting = threading.Thread(target=lambda: statuses.append(answers(running, max_tokens=2000).status_code))
        waiting.start()
        running.until(lambda: running.metric("num_requests_running") == 1, 60)
        (machine, *_) = driver.worker_nodes
        driver.remove_node(machine, allow_graceful=False)
        waiting.join(60)
        assert statuses == [503]
        add_machine(driver)
        running.until(lambda: running.get("/health").status_code == 200, 120)
        assert answers(running).json()["choices"] == before
        waiting = threading.Thread(target=lambda: statuses.append(answers(running, max_tokens=2000).status_code))
        waiting.start()
        running.until(lambda: running.metric("num_requests_running") == 1, 60)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(120)
        waiting.join(60)


@pytest.mark.slow
def test_a_replica_on_each_machine(driver: Any, tmp_path: Path) -> None:
    """One machine's end leaves the other replica, which answers as before."""
    options = ["--data-parallel-size", "2", *RAY]
    with server(str(write_tiny(tmp_path / "tiny")), *options, RAY_ADDRESS=driver.address) as running:
        assert ray.available_resources().get("CPU", 0) == 0
        before = [answers(running, prompt=prompt).json()["choices"] for prompt in PROMPTS]
        (machine, *_) = driver.worker_nodes
        driver.remove_node(machine, allow_graceful=False)
        running.until(lambda: running.metrics_by("state", "replicas")["running"] == 1, 60)
        after = [answers(running, prompt=prompt) for prompt in PROMPTS]
        assert [answer.status_code for answer in after] == [200] * len(PROMPTS)
        assert [answer.json()["choices"] for answer in after] == before
        add_machine(driver)
        running.until(lambda: running.metrics_by("state", "replicas")["running"] == 2, 120)
