"""One engine's figures, in a process of its own: `peers_worker.py ENGINE MODEL MODE OPTIONS`, JSON on stdout.

MODE is `steady` (decode and prefill, after a warm-up; then memory) or `cold` (seconds of this process to its first
token). OPTIONS are Octavo's, as `name=value`. It imports nothing of Octavo's unless ENGINE is octavo, so that peers run
in environments of their own.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = time.perf_counter()
TOKENS, PROMPT, PREFILL = 64, 32, 1024
KV = 64 << 20
"""Bytes of cache that Octavo is given: so few that all of them are used."""
Generate = Callable[[list[list[int]], int], None]
"""Answer these prompts, all at once, with exactly so many greedy tokens each."""


def prompts(count: int, length: int, salt: int) -> list[list[int]]:
    """Prompts that share no beginning, so that no cache helps anybody."""
    return [[(i * 37 + j * 11 + salt * 7919) % 40000 + 100 for j in range(length)] for i in range(count)]


def octavo(model: str, options: str) -> Generate:
    import logging

    logging.getLogger("octavo").addHandler(logging.NullHandler())
    from octavo import LLM, SamplingParams

    given = dict(option.split("=") for option in options.split())
    llm = LLM(model, max_model_len=2048, kv_cache_memory=KV, skip_tokenizer_init=True, **given)

    def generate(batch: list[list[int]], tokens: int) -> None:
        llm.generate(list(batch), SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)

    return generate


def transformers(model: str, options: str) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    loaded.generation_config.eos_token_id = None

    def generate(batch: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(batch)
        with torch.inference_mode():
            loaded.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )

    return generate


def llama_cpp(model: str, options: str) -> Generate:
    import os

    from llama_cpp import Llama

    threads = len(os.sched_getaffinity(0))
    llama = Llama(model, n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def generate(batch: list[list[int]], tokens: int) -> None:
        if len(batch) > 1:
            raise NotImplementedError("its high-level interface answers one prompt at a time")
        llama.reset()
        llama.eval(batch[0])
        for _ in range(tokens - 1):
            llama.eval([llama.sample(temp=0.0)])
        llama.sample(temp=0.0)

    return generate


def vllm(model: str, options: str) -> Generate:
    import os

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; its own choice is half of the memory
    from vllm import LLM, SamplingParams

    llm = LLM(
        model,
        dtype="bfloat16",
        max_model_len=2048,
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )

    def generate(batch: list[list[int]], tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": p} for p in batch], params, use_tqdm=False)

    return generate


def seconds(generate: Generate, count: int, length: int, tokens: int, salt: int) -> float:
    batch = prompts(count, length, salt)
    start = time.perf_counter()
    generate(batch, tokens)
    return time.perf_counter() - start


def steady(generate: Generate) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for count in (1, 16):
        try:
            seconds(generate, count, PROMPT, 3, count)
            first = seconds(generate, count, PROMPT, 1, count + 1)
            whole = seconds(generate, count, PROMPT, TOKENS + 1, count + 2)
            figures[f"decode, batch {count} (tokens/s)"] = count * TOKENS / (whole - first)
        except NotImplementedError:
            figures[f"decode, batch {count} (tokens/s)"] = None
    figures["prefill 1024 (tokens/s)"] = PREFILL / min(seconds(generate, 1, PREFILL, 1, s) for s in (100, 101))
    return figures


def memory_beside(model: str, options: str) -> float:
    """MB of this process's memory that are neither the weights' nor the cache's."""
    files = [Path(model)] if model.endswith(".gguf") else list(Path(model).glob("*.safetensors"))
    weights = sum(f.stat().st_size for f in files) / (2 if "int8" in options else 1)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(status["VmRSS"].split()[0]) * 1024 - weights - KV) / 1e6


if __name__ == "__main__":
    engine, model, mode, options = sys.argv[1:]
    engines = {"octavo": octavo, "transformers": transformers, "llama-cpp-python": llama_cpp, "vllm": vllm}
    ready = engines[engine](model, options)
    if mode == "cold":
        ready(prompts(1, 8, 0), 1)
        figures: dict[str, float | None] = {"start to first token (s)": time.perf_counter() - START}
    else:
        figures = steady(ready)
        if engine == "octavo":
            figures["memory beside weights and KV (MB)"] = memory_beside(model, options)
    print(json.dumps(figures))
