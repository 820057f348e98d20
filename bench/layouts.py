"""What ranks and stages cost on one machine: `python bench/layouts.py`, --write into docs/performance.md.

The random model of 1.1B (--small: of 0.2B) in bfloat16 (or as --quantization says), decode of 1 and of 16 requests and
prefill, by turns: in one process with two threads, in two ranks that share each layer, and in two stages, with a thread
each. Beside it how long the stages computed at the same time: the processors' seconds that both took, for each second
that passed.

Two stages decode 16 sequences as two steps of 8, one in each stage at a time, so that each reads its half of the
weights twice for 16 tokens, where one process reads them once. That is free where products are bound by arithmetic
(prefill, weights of few bits), and not where they are bound by memory (bfloat16). What it costs is measured in one
process: the processors' time of two steps of 8, for that of a step of 16.
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


def decode(llm: LLM, batch: int) -> float:
    """Tokens a second of so many sequences, prompts aside."""
    prompts = [{"prompt_token_ids": [i + 5, 7, 9, 11]} for i in range(batch)]
    return batch * TOKENS / (seconds(llm, prompts, TOKENS + 1) - seconds(llm, prompts, 1))


def prefill(llm: LLM, batch: int) -> float:
    """Tokens a second of so many prompts."""
    prompts = [{"prompt_token_ids": [(i * 31 + k * 7) % 1000 + 5 for k in range(PROMPT)]} for i in range(batch)]
    return batch * PROMPT / seconds(llm, prompts, 1)


def busy(llm: LLM) -> float:
    """Processor seconds of the ranks in a second of decoding: 2 where both compute all the time."""
    ranks = [p for p in psutil.Process().children() if p.memory_info().rss > 100 << 20]

    def spent() -> float:
        return sum(sum(rank.cpu_times()[:2]) for rank in ranks)

    before, start = spent(), time.perf_counter()
    decode(llm, BATCH)
    return (spent() - before) / (time.perf_counter() - start)


def halves(llm: LLM) -> float:
    """The processors' time of two steps of half of BATCH sequences, in this process, for that of a step of all."""
    spent = []
    for batch in (BATCH, BATCH // 2):
        start = time.process_time()
        decode(llm, batch)
        spent.append(time.process_time() - start)
    return 2 * spent[1] / spent[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--quantization", choices=["int8", "q4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    config, kind = {**LLAMA_1B, **(SMALL if args.small else {})}, args.quantization or "bfloat16"
    with tempfile.TemporaryDirectory() as folder, printed(f"bench/layouts.py {kind}", args.write):
        model = str(write_random_model(config, Path(folder), torch.bfloat16))
        options: dict[str, Any] = {
            "max_model_len": 512,
            "kv_cache_memory": "512MiB",
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "quantization": args.quantization,
        }
        layouts = {
            "one process, two threads": LLM(model, threads=2, **options),
            "two ranks": LLM(model, tensor_parallel_size=2, threads=1, **options),
            "two stages": LLM(model, pipeline_parallel_size=2, threads=1, **options),
        }
        print(f"Random Llama of {'0.2B' if args.small else '1.1B'}, {kind}; in brackets the median of what each round")
        print("gives in times of the one process:\n")
        print(f"| tokens/s | {' | '.join(layouts)} |\n| --- |{' --- |' * len(layouts)}")
        for name, measure, batch in (
            ("decode, 1 request", decode, 1),
            (f"decode, {BATCH} requests", decode, BATCH),
            (f"prefill, {BATCH} requests", prefill, BATCH),
        ):
            for llm in layouts.values():
                measure(llm, batch)
            rounds = [[measure(llm, batch) for llm in layouts.values()] for _ in range(args.rounds)]
            first, *others = (statistics.median(each[i] for each in rounds) for i in range(len(layouts)))
            ratios = [statistics.median(each[i] / each[0] for each in rounds) for i in range(1, len(layouts))]
            cells = [f"{speed:.1f} ({ratio:.2f})" for speed, ratio in zip(others, ratios, strict=True)]
            print(f"| {name} | {first:.1f} | {' | '.join(cells)} |")
        spent = busy(layouts["two stages"])
        print(f"\nBoth stages took {spent:.2f} processor seconds a second of decoding {BATCH} requests.")
        times = halves(layouts["one process, two threads"])
        print(f"Two steps of {BATCH // 2} take {times:.2f} times what one of {BATCH} takes.")


if __name__ == "__main__":
    main()
