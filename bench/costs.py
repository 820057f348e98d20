"""How cost grows: decode with the context, a Mamba layer's prefill beside attention's, experts beside a dense layer.

    python bench/costs.py            # everything, about two minutes
    python bench/costs.py context    # one of context, prefill, experts

Random models, float32 unless --dtype says otherwise. Prints tables; fails on nothing.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import document
from inside import add, engine_of
from random_model import write_random_model

from octavo import LLM, SamplingParams

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 512,
    "max_position_embeddings": 16384,
}
MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "state_size": 16,
    "vocab_size": 512,
}
FALCON_MAMBA = {**MAMBA, "architectures": ["FalconMambaForCausalLM"]}
JAMBA = {
    **LLAMA,
    "architectures": ["JambaForCausalLM"],
    "attn_layer_period": 8,
    "attn_layer_offset": 7,
    "num_experts": 1,
}

MODELS = {"Llama": LLAMA, "Mamba": MAMBA, "FalconMamba": FALCON_MAMBA, "Jamba (Mamba layers only)": JAMBA}


@contextmanager
def loaded(config: dict[str, Any], dtype: str, **options: Any) -> Iterator[LLM]:
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(config, Path(folder))
        yield LLM(
            folder,
            skip_tokenizer_init=True,
            dtype=dtype,
            kv_cache_memory="2GiB",
            max_model_len=9216,
            enable_prefix_caching=False,
            max_num_seqs=8,
            **options,
        )


def prompt(length: int) -> list[int]:
    return [(7 * i + 3) % 500 for i in range(length)]


def decode_ms(llm: LLM, context: int, steps: int = 40) -> float:
    """Median milliseconds of a step that decodes one token after `context` of them."""
    params = SamplingParams(temperature=0, max_tokens=steps + 8, ignore_eos=True)
    add(llm, "r", prompt(context), params)
    took, engine = [], engine_of(llm)
    while engine.has_work:
        sequence = engine.scheduler.running[0] if engine.scheduler.running else None
        decoding = sequence is not None and sequence.remaining == 1
        start = time.perf_counter()
        engine.step()
        if decoding:
            took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took[4:])


def context(dtype: str) -> None:
    lengths = (1024, 2048, 4096, 8192)
    print("Decode, one request, two layers of width 1024: milliseconds a token by context\n")
    print(f"| model | {' | '.join(str(n) for n in lengths)} | last over first |\n|{' --- |' * (len(lengths) + 2)}")
    for name, config in MODELS.items():
        with loaded(config, dtype) as llm:
            times = [decode_ms(llm, n) for n in lengths]
        print(f"| {name} | {' | '.join(f'{t:.2f}' for t in times)} | {times[-1] / times[0]:.2f} |", flush=True)


def prefill_seconds(config: dict[str, Any], dtype: str, length: int = 4096, runs: int = 5) -> float:
    params = SamplingParams(temperature=0, max_tokens=1)
    with loaded({**config, "num_hidden_layers": 1}, dtype, max_num_batched_tokens=length) as llm:
        took = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            llm.generate([prompt(length)], params, use_tqdm=False)
            took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


def prefill(dtype: str) -> None:
    print("\nPrefill of 4,096 tokens through one layer of width 1024 (seconds; vocabulary of 512)\n")
    attention = prefill_seconds(LLAMA, dtype)
    mamba = prefill_seconds(MAMBA, dtype)
    print("| layer | seconds | over attention |\n| --- | --- | --- |")
    print(f"| Llama's (attention and feed-forward) | {attention:.3f} | 1 |")
    print(f"| Mamba's | {mamba:.3f} | {mamba / attention:.2f} |")


def experts(dtype: str) -> None:
    """Top 2 of 64 experts of width 1408, and top 4 of 32 of width 704 with biases and clamped gates (gpt-oss), beside a
    feed-forward of width 2816: as much is multiplied."""
    mixtral = {
        **LLAMA,
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": 1408,
        "num_local_experts": 64,
        "num_experts_per_tok": 2,
    }
    gpt_oss = {
        **LLAMA,
        "architectures": ["GptOssForCausalLM"],
        "intermediate_size": 704,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "head_dim": 64,
    }
    print("\nDecode, one request, two layers of width 1024: milliseconds a token\n")
    with loaded(LLAMA, dtype) as llm:
        dense = decode_ms(llm, 64, 100)
    with loaded(mixtral, dtype) as llm:
        sparse = decode_ms(llm, 64, 100)
    with loaded(gpt_oss, dtype) as llm:
        clamped = decode_ms(llm, 64, 100)
    print("| feed-forward | ms | over dense |\n| --- | --- | --- |")
    print(f"| dense, width 2816 | {dense:.2f} | 1 |")
    print(f"| top 2 of 64 experts, width 1408 each | {sparse:.2f} | {sparse / dense:.2f} |")
    print(f"| gpt-oss: top 4 of 32 experts, width 704 each | {clamped:.2f} | {clamped / dense:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=["context", "prefill", "experts", []], help="default: all")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    logging.getLogger("octavo").setLevel(logging.ERROR)
    with document.printed("bench/costs.py", options.write):
        for kind in options.kinds or ("context", "prefill", "experts"):
            {"context": context, "prefill": prefill, "experts": experts}[kind](options.dtype)
