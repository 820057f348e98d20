"""What stages cost, and that they work at the same time: `python bench/stages.py`, --write into docs/performance.md.

The random model of 1.1B (--small: of 0.2B) in bfloat16, decode and prefill of 16 requests, by turns: in one process
with two threads, and in two stages with a thread each. Beside it how long the stages computed at the same time: the
processors' seconds that both took, for each second that passed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from document import printed
from models import LLAMA_1B
from random_model import write_random_model

from octavo import LLM, SamplingParams

BATCH, TOKENS, PROMPT = 16, 32, 128
SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "vocab_size": 16384}


def seconds(llm: LLM, prompts: list[Any], count: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def decode(llm: LLM) -> float:
    """Tokens a second of BATCH sequences, prompts aside."""
    prompts = [{"prompt_token_ids": [i + 5, 7, 9, 11]} for i in range(BATCH)]
    return BATCH * TOKENS / (seconds(llm, prompts, TOKENS + 1) - seconds(llm, prompts, 1))


def prefill(llm: LLM) -> float:
    """Tokens a second of BATCH prompts."""
    prompts = [{"prompt_token_ids": [(i * 31 + k * 7) % 1000 + 5 for k in range(PROMPT)]} for i in range(BATCH)]
    return BATCH * PROMPT / seconds(llm, prompts, 1)


def busy(llm: LLM) -> float:
    """Processor seconds of the ranks in a second of decoding: 2 where both compute all the time."""
    ranks = [p for p in psutil.Process().children() if p.memory_info().rss > 100 << 20]

    def spent() -> float:
        return sum(sum(rank.cpu_times()[:2]) for rank in ranks)

    before, start = spent(), time.perf_counter()
    decode(llm)
    return (spent() - before) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    config = {**LLAMA_1B, **(SMALL if args.small else {})}
    with tempfile.TemporaryDirectory() as folder, printed("stages", args.write):
        model = str(write_random_model(config, Path(folder), torch.bfloat16))
        options: dict[str, Any] = {
            "max_model_len": 512,
            "kv_cache_memory": "512MiB",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
        }
        one = LLM(model, threads=2, **options)
        two = LLM(model, pipeline_parallel_size=2, threads=1, **options)
        print("| | one process, two threads | two stages, a thread each | ratio |\n| --- | --- | --- | --- |")
        for name, measure in (("decode", decode), ("prefill", prefill)):
            measure(one), measure(two)
            pairs = [(measure(one), measure(two)) for _ in range(args.rounds)]
            ratio = statistics.median(b / a for a, b in pairs)
            alone, staged = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            print(f"| {name}, tokens/s of {BATCH} requests | {alone:.0f} | {staged:.0f} | {ratio:.2f} |")
        print(f"\nBoth stages took {busy(two):.2f} processor seconds a second of decoding.")


if __name__ == "__main__":
    main()
