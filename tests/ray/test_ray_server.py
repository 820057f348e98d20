"""`octavo serve` with ranks on a Ray cluster: a machine that goes, and SIGTERM under load."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray
from ray.util import placement_group_table

from tests.ray.conftest import add_machine
from tests.server.conftest import write_tiny
from tests.server.running import Running, server

REQUEST = {"prompt": "Hello", "temperature": 0, "max_tokens": 8, "ignore_eos": True}


def answers(running: Running, **changes: Any) -> Any:
    return running.post("/v1/completions", {**REQUEST, **changes})


def groups() -> list[str]:
    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


@pytest.mark.slow
def test_a_machine_goes_and_comes_and_then_the_server_ends(cluster: Any, tmp_path: Path) -> None:
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    options = [
        "--tensor-parallel-size",
        "2",
        "--distributed-executor-backend",
        "ray",
        "--kv-cache-memory",
        "16MiB",
        "--shutdown-timeout",
        "1",
    ]
    with server(str(write_tiny(tmp_path / "tiny")), *options, RAY_ADDRESS=cluster.address) as running:
        before = answers(running).json()["choices"]
        statuses = list[int]()
        waiting = threading.Thread(target=lambda: statuses.append(answers(running, max_tokens=2000).status_code))
        waiting.start()
        running.until(lambda: running.metric("num_requests_running") == 1, 60)
        (machine, *_) = cluster.worker_nodes
        cluster.remove_node(machine, allow_graceful=False)
        waiting.join(60)
        assert statuses == [503]
        add_machine(cluster)
        running.until(lambda: running.get("/health").status_code == 200, 120)
        assert answers(running).json()["choices"] == before
        waiting = threading.Thread(target=lambda: statuses.append(answers(running, max_tokens=2000).status_code))
        waiting.start()
        running.until(lambda: running.metric("num_requests_running") == 1, 60)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(120)
        waiting.join(60)
    end = threading.Event()
    for _ in range(600):
        if not groups() and ray.available_resources().get("CPU") == 2:
            break
        end.wait(0.1)
    assert groups() == []
    assert ray.available_resources()["CPU"] == 2, "a rank is left"
    ray.shutdown()
