"""What it costs a step that its ranks are actors of a Ray cluster: a step without work, to all ranks and back.

    python bench/ray_steps.py [--write]

Beside processes of this machine (mp). The cluster is a raylet for each rank, all on this machine: a network adds its
own time to each way.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import ray
from document import printed
from random_model import write_random_model
from ray.cluster_utils import Cluster

from octavo.config import EngineArgs
from octavo.executor.rank_executor import RankExecutor, load_ranks
from octavo.executor.step import Step

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}
STORE = 80 << 20


def microseconds(executor: RankExecutor) -> float:
    """Of a step: the least mean of fifty in a row."""
    means = []
    for _ in range(60):
        start = time.perf_counter()
        for _ in range(50):
            executor.submit(Step([], [], []))
            executor.collect()
        means.append((time.perf_counter() - start) / 50 * 1e6)
    return min(means)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    with tempfile.TemporaryDirectory() as folder, printed("bench/ray_steps.py", options.write):
        write_random_model(CONFIG, Path(folder))
        print("A step without work, to all ranks and back (microseconds):\n")
        print("| ranks | mp | Ray |\n| --- | --- | --- |")
        for size in (1, 2):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
            times = []
            for backend in ("mp", "ray"):
                args = EngineArgs(
                    model=folder,
                    skip_tokenizer_init=True,
                    kv_cache_memory="4MiB",
                    threads=1,
                    tensor_parallel_size=size,
                    distributed_executor_backend=backend,
                )
                executor = load_ranks(args)
                times.append(microseconds(executor))
                executor.close()
            print(f"| {size} | {times[0]:.0f} | {times[1]:.0f} |")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
