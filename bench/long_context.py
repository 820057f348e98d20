"""What long texts cost: `python bench/long_context.py`, with --write into docs/performance.md.

Of a random Llama of 1.1B: how fast prompts of each length are read, and how fast answers are written after them, with
keys and values in bfloat16, int8 and int4. Attention's share is what a length costs beyond a short text's time a token,
since all else costs the same everywhere. Then a model of sliding windows and one of states, which stay flat; and how
long a conversation takes to its next token after a restart, with kv_offload and without. Every line is a process of its
own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import document
import torch
from models import LLAMA_1B
from random_model import write_random_model

ANSWER, LAYERS = 32, LLAMA_1B["num_hidden_layers"]
SHORT, SHORT_ROUNDS = 256, 9
"""Tokens whose attention costs next to nothing, and how often they are timed: all shares are counted from them."""
WORKER = """
import json, random, sys
from octavo import LLM, SamplingParams
folder, options, rounds, answer = json.loads(sys.argv[1])
llm = LLM(folder, skip_tokenizer_init=True, **options)
rng = random.Random(0)
def seconds(length):
    prompt = [rng.randrange(10, 30000) for _ in range(length)]
    values = SamplingParams(max_tokens=1 + answer, ignore_eos=True, detokenize=False, temperature=0)
    times = llm.generate([{"prompt_token_ids": prompt}], values, use_tqdm=False)[0].metrics
    return times.first_token_time - times.arrival_time, times.last_token_time - times.first_token_time
seconds(256)
for length, count in rounds:
    print(json.dumps([length, [seconds(length) for _ in range(count)]]), flush=True)
llm.llm_engine.engine.executor.close()
"""
WINDOWS = {
    **LLAMA_1B,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 1024,
    "num_hidden_layers": 8,
}
STATES = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "hidden_size": 1536,
    "num_hidden_layers": 16,
    "intermediate_size": 3072,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 96,
    "vocab_size": 49152,
    "torch_dtype": "bfloat16",
}


def measured(
    folder: Path, lengths: list[int], rounds: int, answer: int = ANSWER, **options: Any
) -> dict[int, tuple[float, float]]:
    """By length, medians of seconds to read a prompt and to write `answer` tokens after its first."""
    options = {"hf_overrides": {"max_position_embeddings": 1 << 18}, "max_num_seqs": 2, **options}
    each = [(length, max(rounds, SHORT_ROUNDS) if length == SHORT else rounds) for length in lengths]
    given = json.dumps([str(folder), options, each, answer])
    environment = {**os.environ, "PYTHONPATH": str(document.ROOT), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", WORKER, given]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    return {
        length: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for length, times in found.items()
    }


def table(folder: Path, kinds: dict[str, dict[str, Any]], lengths: list[int], rounds: int) -> None:
    print("| cache | tokens | read (tokens/s) | attention | written (tokens/s) | attention |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind, options in kinds.items():
        found = measured(folder, [SHORT, *lengths], rounds, max_model_len=max(lengths) + 64, **options)
        read, write = found[SHORT]
        for length in lengths:
            took, wrote = found[length]
            shares = (1 - read / SHORT * length / took, 1 - write / wrote)
            figures = (length / took, max(0.0, shares[0]), ANSWER / wrote, max(0.0, shares[1]))
            print("| {} | {:,} | {:.0f} | {:.0%} | {:.1f} | {:.0%} |".format(kind, length, *figures))
    print()


def restart(folder: Path, length: int, rounds: int) -> None:
    """Seconds to a conversation's next token in a new process."""
    memory = {"max_model_len": length + 64}
    with tempfile.TemporaryDirectory() as store:
        measured(folder, [length], 1, 1, kv_offload=store, **memory)
        size = sum(file.stat().st_size for file in Path(store).iterdir())
        found = [
            [measured(folder, [length], 1, 1, **memory, **more)[length][0] for _ in range(rounds)]
            for more in ({}, {"kv_offload": store})
        ]
    without, with_store = map(statistics.median, found)
    print(
        f"A conversation of {length:,} tokens, to its next token in a process that has just loaded: {without:.2f} s, "
        f"with kv_offload {with_store:.2f} s ({size / 1e6:.0f} MB of files, in the system's cache).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="prompts of each length (default: %(default)s)")
    parser.add_argument("--lengths", default="1024,8192,32768", help="tokens (default: %(default)s)")
    parser.add_argument("--restart", type=int, default=8192, help="of the conversation; 0: none (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="of the Llama; fewer are quicker, and have tables of their own (22)"
    )
    parser.add_argument("--caches", default="bfloat16,int8,int4", help="of the Llama (default: %(default)s)")
    parser.add_argument("--note", default="", help="what else ran, for example")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    name = "bench/long_context.py" + (f" --layers {options.layers}" if options.layers != LAYERS else "")
    with document.printed(name, options.write), tempfile.TemporaryDirectory() as place:
        print(f"### Long texts\n\n`{name}`: medians of {options.rounds}. {options.note}\n")
        folders = {}
        configs = {"llama": {**LLAMA_1B, "num_hidden_layers": options.layers}, "windows": WINDOWS, "states": STATES}
        for name, config in configs.items():
            folders[name] = Path(place) / name
            folders[name].mkdir()
            write_random_model(config, folders[name], torch.bfloat16)
        caches = {kind: {} if kind == "bfloat16" else {"kv_cache_dtype": kind} for kind in options.caches.split(",")}
        print(f"**Random Llama, {options.layers} of 1.1B's {LAYERS} layers**\n")
        table(folders["llama"], caches, lengths, options.rounds)
        if options.restart:
            restart(folders["llama"], options.restart, options.rounds)
        if options.layers != LAYERS:
            return
        print("**Windows of 1,024 tokens, 8 layers**\n")
        table(folders["windows"], {"bfloat16": {}}, lengths, options.rounds)
        print("**States (Mamba), 16 layers**\n")
        table(folders["states"], {"none": {}}, lengths, options.rounds)


if __name__ == "__main__":
    main()
