"""vLLM's own examples, run as they are from a folder that has them (examples/ of vLLM's repository or source package).

What they ask of the hub by name is answered with tiny models; those of a server ask one at port 8000.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.compat.clients.hub import ROOT, write_hub

PORT = 8000
"""What vLLM's examples say."""
WITHIN = 180.0
"""Seconds for one example."""
FAULTS = re.compile(r"Request failed|Test failed|^\s*[{]?.error.:|answers are the same: False", re.MULTILINE)
"""What examples print that ended well and did not get what they asked for."""

NAMES = {
    "BAAI/bge-m3": "vectors",
    "BAAI/bge-reranker-v2-m3": "score",
    "Qwen/Qwen2.5-3B-Instruct": "text",
    "Qwen/Qwen3-0.6B": "text",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "reward",
    "boltuix/NeuroBERT-NER": "names",
    "facebook/opt-125m": "deep text",
    "internlm/internlm2-1_8b-reward": "token reward",
    "intfloat/e5-small": "embed",
    "jason9693/Qwen2.5-1.5B-apeach": "classify",
    "jeeejeee/llama32-3b-text2sql-spider": "adapter",
    "jinaai/jina-embeddings-v3": "matryoshka",
    "lmsys/longchat-13b-16k": "text",
    "meta-llama/Llama-3.2-1B-Instruct": "text",
    "meta-llama/Llama-3.2-3B-Instruct": "text",
}
"""Models that the examples below ask for, and which tiny ones stand for them."""

OFFLINE = """
basic/offline_inference/basic.py
basic/offline_inference/chat.py --max-tokens 8
basic/offline_inference/classify.py
basic/offline_inference/embed.py
basic/offline_inference/generate.py --max-tokens 8 --temperature 0.5 --top-p 0.9 --top-k 5
basic/offline_inference/score.py
deployment/async_llm_streaming.py
deployment/llm_engine_example.py
features/automatic_prefix_caching/automatic_prefix_caching_offline.py
features/automatic_prefix_caching/prefix_caching_offline.py
features/context_extension/context_extension_offline.py
features/logits_processor/custom.py
features/logits_processor/custom_req.py
features/logits_processor/custom_req_init.py
features/lora/multilora_offline.py
features/profiling/run_one_batch_offline.py
features/reset_kv/reset_kv_offline.py
features/structured_outputs/structured_outputs_offline.py
observability/metrics/offline.py
pooling/embed/embed_matryoshka_fy_offline.py
pooling/reward/sequence_reward_offline.py
pooling/reward/token_reward_offline.py
pooling/token_classify/ner_offline.py
pooling/token_embed/multi_vector_retrieval_offline.py
rl/batch_invariance/reproducibility_offline.py
rl/pause_resume/pause_resume_offline.py
"""

ONLINE = {
    "--served-model-name chat Qwen/Qwen3-8B Qwen/Qwen2.5-1.5B-Instruct facebook/opt-125m": """
basic/online_serving/openai_chat_completion_client.py
basic/online_serving/openai_chat_completion_client.py --stream
basic/online_serving/openai_completion_client.py
basic/online_serving/openai_completion_client.py --stream
features/structured_outputs/structured_outputs_client.py
features/structured_outputs/structured_outputs_client.py --stream --reasoning
generate/batched_chat_completions_online.py
reasoning/openai_chat_completion_with_reasoning.py
reasoning/openai_chat_completion_with_reasoning_streaming.py
reasoning/openai_responses_client.py
tool_calling/openai_chat_completion_client_with_tools_required.py
tool_calling/openai_responses_client_with_tools.py
""",
    "BAAI/bge-reranker-v2-m3 --served-model-name BAAI/bge-reranker-v2-m3 BAAI/bge-reranker-base": """
pooling/score/cohere_rerank_client.py
pooling/score/rerank_api_online.py
pooling/score/score_api_online.py
""",
    "jason9693/Qwen2.5-1.5B-apeach": "pooling/classify/classification_online.py",
    "intfloat/e5-small --runner pooling": """
pooling/embed/embedding_requests_base64_online.py
pooling/embed/embedding_requests_bytes_online.py
pooling/embed/openai_embedding_client.py
""",
    "jinaai/jina-embeddings-v3 --runner pooling": "pooling/embed/openai_embedding_matryoshka_fy_client.py",
    "boltuix/NeuroBERT-NER": "pooling/token_classify/ner_online.py",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "pooling/reward/sequence_reward_online.py",
    "internlm/internlm2-1_8b-reward": "pooling/reward/token_reward_online.py",
    "BAAI/bge-m3 --runner pooling --pooler-config.task token_embed": (
        "pooling/token_embed/multi_vector_retrieval_online.py"
    ),
}
"""What is served, and the clients of it; the first, of text, is a small real model."""


@dataclass(frozen=True)
class Ran:
    """An example with its arguments, and what went wrong; empty for nothing."""

    name: str
    fault: str = ""


def run_all(examples: Path, python: str, model: str, environment: dict[str, str], folder: Path) -> Iterator[Ran]:
    """All examples, one after another.

    Args:
        examples: the folder.
        python: an interpreter whose environment has Octavo and what the examples import.
        model: the small real model.
        environment: of the programs: the hub's cache among it.
        folder: where the examples run and leave what they write.
    """
    for line in OFFLINE.split("\n"):
        if line:
            yield _run(examples, python, line, environment, folder)
    for served, clients in ONLINE.items():
        flags = served if not served.startswith("-") else f"{shlex.quote(model)} {served} --max-model-len 2048"
        with _serving(python, flags, environment, folder):
            for line in clients.split("\n"):
                if line:
                    yield _run(examples, python, line, environment, folder)


def _run(examples: Path, python: str, line: str, environment: dict[str, str], folder: Path) -> Ran:
    name, *arguments = shlex.split(line)
    command = [python, "-m", "octavo.compat.vllm", str(examples / name), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, timeout=WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        return Ran(line, f"not done after {WITHIN:.0f} s")
    found = FAULTS.search(done.stdout) or FAULTS.search(done.stderr)
    if done.returncode:
        return Ran(line, (done.stderr.strip().splitlines() or ["no word"])[-1][:300])
    return Ran(line, done.stdout[found.start() : found.start() + 300] if found else "")


@contextmanager
def _serving(python: str, flags: str, environment: dict[str, str], folder: Path) -> Iterator[None]:
    """A server at vLLM's usual port. Raises OSError if somebody else has it, RuntimeError if it does not come up."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", PORT))
    command = [python, "-m", "octavo", "serve", *shlex.split(flags), "--port", str(PORT), "--kv-cache-memory", "512MiB"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + WITHIN
        while not _healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no server: {flags}: {(folder / 'server.log').read_text()[-800:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _healthy() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/health").status_code == 200
    except httpx.TransportError:
        return False


def main(examples: str, model: str) -> int:
    """Run all, and tell each as it ends, one a line: whether it ran, its name, what was wrong."""
    faults = 0
    with tempfile.TemporaryDirectory() as made:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **write_hub(Path(made) / "hub", NAMES)}
        work = Path(made) / "work"
        work.mkdir()
        for one in run_all(Path(examples), sys.executable, model, environment, work):
            print("FAULT" if one.fault else "ok", one.name, one.fault, sep="\t", flush=True)
            faults += bool(one.fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
