"""What a step costs beside the model: scheduling, batch tensors, sampling, outputs. `python bench/overhead.py`

A tiny model runs, so that nearly all of a step is overhead; the time inside the model itself is taken off. Two numbers
of waiting requests show that a step does not scan them.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import document
import torch
from inside import add, engine_of, runner_of
from safetensors.torch import save_file

from octavo import LLM, SamplingParams

STEPS = 200


def write_tiny(folder: Path) -> None:
    """A Llama of two layers and width 64, random."""
    width, hidden, vocab = 64, 96, 320
    torch.manual_seed(0)
    weights = {"model.embed_tokens.weight": torch.randn(vocab, width), "model.norm.weight": torch.ones(width)}
    for i in range(2):
        for name, shape in (("q", (width, width)), ("k", (32, width)), ("v", (32, width)), ("o", (width, width))):
            weights[f"model.layers.{i}.self_attn.{name}_proj.weight"] = torch.randn(*shape) / 8
        for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            weights[f"model.layers.{i}.mlp.{name}_proj.weight"] = torch.randn(*shape) / 8
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{name}.weight"] = torch.ones(width)
    save_file(weights, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


def overhead(folder: str, batch: int, waiting: int) -> tuple[float, float]:
    """Milliseconds of a step, and of those outside the model, medians."""
    llm = LLM(folder, skip_tokenizer_init=True, max_num_seqs=batch, kv_cache_memory="256MiB")
    engine, runner = engine_of(llm), runner_of(llm)
    model: Any = runner.model
    inside = 0.0

    def timed(function: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            out = function(*args)
            inside += time.perf_counter() - start
            return out

        return call

    model.forward, model.logits = timed(model.forward), timed(model.logits)
    params = SamplingParams(temperature=0, max_tokens=STEPS * 4, ignore_eos=True)
    for i in range(batch + waiting):
        add(llm, str(i), [i % 300, 2, 3], params)
    for _ in range(20):
        engine.step()
    recorded: Any = runner._recorded
    for program in filter(None, recorded.programs.values() if recorded is not None else ()):
        program.run = timed(program.run)  # what runs in the model's stead
    whole, outside = [], []
    for _ in range(STEPS):
        inside, start = 0.0, time.perf_counter()
        engine.step()
        took = time.perf_counter() - start
        whole.append(1e3 * took)
        outside.append(1e3 * (took - inside))
    return statistics.median(whole), statistics.median(outside)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, document.printed("bench/overhead.py", options.write):
        write_tiny(Path(folder))
        print("| batch | waiting | step (ms) | outside the model (ms) |\n| --- | --- | --- | --- |")
        for batch in (1, 64):
            for waiting in (10, 10_000):
                step, outside = overhead(folder, batch, waiting)
                print(f"| {batch} | {waiting} | {step:.2f} | {outside:.2f} |")
