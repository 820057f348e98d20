"""What adapters cost: `python bench/lora.py`, with --write into docs/performance.md. Some five minutes.

SmolLM2 in bfloat16 and as its Q4_1 file, with random adapters of rank 16 on all linear layers: decode of the bare base
and with adapters by turns, and with --peer transformers with PEFT's adapter (bfloat16, without merging it). For the
random model of 1.1B, how long an adapter's first use takes until its first token, beside a request without one, and the
longest gap between tokens of a stream that runs meanwhile, beside its usual one.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import document
import numpy as np
from models import MODELS
from safetensors.numpy import save_file

from octavo import LLM, AsyncLLM, LoRARequest, RequestOutputKind, SamplingParams

RANK, TOKENS = 16, 48
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(config: dict[str, Any], folder: Path, seed: int) -> LoRARequest:
    """A small random adapter of every linear layer of a Llama, as PEFT writes it."""
    rng, size, inner = np.random.default_rng(seed), config["hidden_size"], config["intermediate_size"]
    kv = size // config["num_attention_heads"] * config["num_key_value_heads"]
    attention = {"q_proj": (size, size), "k_proj": (kv, size), "v_proj": (kv, size), "o_proj": (size, size)}
    mlp = {"gate_proj": (inner, size), "up_proj": (inner, size), "down_proj": (size, inner)}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for part, layers in (("self_attn", attention), ("mlp", mlp)):
            for name, (outputs, inputs) in layers.items():
                module = f"base_model.model.model.layers.{layer}.{part}.{name}"
                a, b = rng.normal(size=(RANK, inputs)) / inputs**0.5, rng.normal(size=(outputs, RANK)) / 1000
                tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
                tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": LAYERS}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return LoRARequest(folder.name, seed + 1, str(folder))


def decode(llm: LLM, adapters: list[LoRARequest | None]) -> float:
    """Tokens a second of as many sequences, prompts aside."""
    prompts: list[Any] = [{"prompt_token_ids": [i + 5, 7, 9, 11]} for i in range(len(adapters))]
    times = []
    for count in (1, TOKENS + 1):
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)
        times.append(time.perf_counter() - start)
    return len(adapters) * TOKENS / (times[1] - times[0])


def ratios(model: str, adapters: list[LoRARequest], rounds: int) -> dict[str, tuple[float, float]]:
    """For each way its tokens a second, and how many times those of the bare base they are: medians of rounds."""
    options: dict[str, Any] = {"max_model_len": 512, "kv_cache_memory": "512MiB", "skip_tokenizer_init": True}
    options["enable_prefix_caching"] = False
    bare = LLM(model, **options)
    llm = LLM(model, enable_lora=True, max_loras=8, max_cpu_loras=8, **options)
    one, eight = adapters[0], [adapters[i % 8] for i in range(16)]
    ways: dict[str, list[LoRARequest | None]] = {
        "1 adapter, batch 1": [one],
        "1 adapter, batch 16": [one] * 16,
        "8 adapters, batch 16": [*eight],
        "loaded and unused, batch 1": [None],
        "loaded and unused, batch 16": [None] * 16,
    }
    for way in ways.values():  # everything is loaded and recorded
        decode(llm, way), decode(bare, [None] * len(way))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            base, own = decode(bare, [None] * len(way)), decode(llm, way)
            found[name].append((own, own / base))
    return {
        name: (statistics.median(own for own, _ in each), statistics.median(ratio for _, ratio in each))
        for name, each in found.items()
    }


PEER = """
import sys, time, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
if len(sys.argv) > 2:
    model = PeftModel.from_pretrained(model, sys.argv[2])
ids = torch.tensor([[5, 7, 9, 11]])
with torch.inference_mode():
    for _ in range(2):
        times = []
        for count in (1, 33):
            start = time.perf_counter()
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                           min_new_tokens=count, do_sample=False)
            times.append(time.perf_counter() - start)
print(32 / (times[1] - times[0]))
"""


def peer(folder: Path, *adapter: str) -> float:
    """Tokens a second of transformers, batch 1."""
    done = subprocess.run(
        [sys.executable, "-c", PEER, str(folder), *adapter], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


async def first_use(folder: Path, adapter: LoRARequest) -> list[str]:
    """How an adapter's first use meets a stream that runs."""
    options: dict[str, Any] = {"max_model_len": 2048, "kv_cache_memory": "512MiB", "skip_tokenizer_init": True}
    llm = AsyncLLM(str(folder), enable_lora=True, enable_prefix_caching=False, **options)
    params = SamplingParams(
        temperature=0, max_tokens=80, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
    )
    came: list[float] = []

    async def stream() -> None:
        async for _ in llm.generate({"prompt_token_ids": [5, 6, 7]}, params):
            came.append(time.perf_counter())

    async def first(request: LoRARequest | None) -> float:
        start = time.perf_counter()
        one = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
        async for _ in llm.generate({"prompt_token_ids": [8, 9, 10]}, one, lora_request=request):
            pass
        return time.perf_counter() - start

    await first(None)
    running = asyncio.create_task(stream())
    while len(came) < 10:
        await asyncio.sleep(0.01)
    bare, loaded_from = await first(None), len(came)
    new = await first(adapter)
    loaded_to = len(came)
    await running
    llm.shutdown()
    gaps = np.diff(came)
    usual, longest = np.median(gaps), gaps[loaded_from - 1 : loaded_to + 1].max()
    return [
        f"Random Llama of 1.1B, bfloat16, while a stream runs: a request's first token comes after {bare:.2f} s "
        f"without an adapter, {new:.2f} s with one that is used for the first time. The stream's longest gap meanwhile "
        f"is {longest * 1000:.0f} ms, usually it is {usual * 1000:.0f} ms."
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-large", action="store_true", help="leave the model of 1.1B out")
    parser.add_argument("--peer", action="store_true", help="also transformers with PEFT")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    options = parser.parse_args()
    with document.printed("bench/lora.py", options.write), tempfile.TemporaryDirectory() as made:
        (folder := Path(made, "small")).mkdir()
        model = MODELS["small"](folder)
        adapters = [write_adapter(model.config, Path(made, f"adapter-{i}"), i) for i in range(8)]
        print(f"`python bench/lora.py --rounds {options.rounds}`: SmolLM2-135M, rank {RANK} on all linear layers.\n")
        print("| decode | tokens/s | times the bare base |\n| --- | --- | --- |")
        for kind, path in (("bfloat16", folder), ("Q4_1", model.gguf)):
            for name, (own, ratio) in ratios(str(path), adapters, options.rounds).items():
                print(f"| {kind}, {name} | {own:.0f} | {ratio:.2f} |")
        if options.peer:
            bare, adapted = peer(folder), peer(folder, adapters[0].lora_path)
            print(f"| transformers with PEFT, bfloat16, 1 adapter, batch 1 | {adapted:.1f} | {adapted / bare:.2f} |")
        if not options.without_large:
            (folder := Path(made, "large")).mkdir()
            large = MODELS["large"](folder)
            adapter = write_adapter(large.config, Path(made, "adapter-large"), 9)
            print("\n" + "\n".join(asyncio.run(first_use(folder, adapter))))


if __name__ == "__main__":
    main()
