"""A Ray cluster of several machines, all of them on this one: a raylet each, with CPUs of its own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
STORE = 80 << 20
"""Bytes of each machine's object store, the least that Ray takes."""


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two machines with one each. RAY_ADDRESS names it, until this folder's tests have run."""
    pytest.importorskip("ray")
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    os.makedirs(
        get_default_ray_temp_dir(), exist_ok=True
    )  # Ray notes the cluster's address there, wherever its files are
    folder = tempfile.mkdtemp(prefix="ray-")
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        for _ in range(2):
            add_machine(cluster)
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add_machine(cluster: Any) -> Any:
    """Another machine with one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE)
