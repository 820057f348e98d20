"""How fast a mixture of experts is that is larger than memory: `python bench/on_disk.py`, with --write into
docs/performance.md.

A random mixture is loaded and answers in a control group whose memory is limited to a part of its weights (the first
start, which lays them out on disk, and a later one), and without a limit: from disk, and in memory. All give the same
tokens. Before each run what the system has of the files is dropped. A random router chooses all experts alike, which is
the worst case: those of a trained one are chosen again sooner. Needs root and control groups, of either version.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import document
import torch
from random_model import write_random_model

from octavo.sizes import format_size, parse_size

GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory", "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "", "memory.max"),
)
"""Of both versions: where groups are, the controller, and a group's limit."""
WORKER = """
import json, sys, threading, time
from pathlib import Path
from octavo import LLM, SamplingParams

def anonymous():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024

most, done = [0], threading.Event()
def watch():
    while not done.wait(0.02):
        most[0] = max(most[0], anonymous())

threading.Thread(target=watch, daemon=True).start()
begun = time.perf_counter()
llm = LLM(sys.argv[1], skip_tokenizer_init=True, weights_on_disk=sys.argv[2], max_model_len=1024, max_num_seqs=4)
loaded = time.perf_counter() - begun
def tokens_a_second(count):
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    begun = time.perf_counter()
    (answer,) = llm.generate([list(range(200, 216))], params, use_tqdm=False)
    return answer.outputs[0].token_ids, time.perf_counter() - begun
tokens_a_second(1)
tokens, seconds = tokens_a_second(int(sys.argv[3]))
begun = time.perf_counter()
llm.generate([list(range(300, 812))], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
long = time.perf_counter() - begun
done.set()
print(json.dumps({"loaded": loaded, "decode": len(tokens) / seconds, "prompt": 512 / long,
    "anonymous": most[0], "tokens": list(tokens)}))
"""


@dataclass
class Result:
    """What one run took."""

    name: str
    loaded: float
    decode: float
    prompt: float
    anonymous: int
    tokens: list[int]


def mixture(layers: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Path]:
    """A control group below this process's own. Exits where there can be none."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for root, controller, name in GROUPS:
        path = next((path for _, controllers, path in own if controller in controllers.split(",")), None)
        group = root / (path or "/").lstrip("/") / f"octavo-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    raise SystemExit("no control group could be made that limits memory: run this as root, with the memory controller")


def forget(folders: list[Path]) -> None:
    """Drop what the system has of files: pages that another process has read are not counted in a group."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(name: str, model: Path, cache: Path, where: str, group: Path | None, count: int) -> Result:
    forget([model, cache])
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(document.ROOT), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", WORKER, str(model), where, str(count)]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *command]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: ended with {done.returncode}")
    return Result(name, **json.loads(done.stdout.splitlines()[-1]))


def measured(model: Path, limit: int, count: int) -> list[Result]:
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        cache, memory = Path(folder), format_size(limit)
        with limited(limit) as group:
            found = [
                run(f"{memory}, first start", model, cache, "auto", group, count),
                run(f"{memory}, later start", model, cache, "auto", group, count),
            ]
        found.append(run("no limit, experts from disk", model, cache, "on", None, count))
        os.environ["OCTAVO_PACKED_CACHE"] = "0"
        found.append(run("no limit, in memory", model, cache, "off", None, count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="of the mixture, 0.4 GB each (default: %(default)s)")
    parser.add_argument("--limit", default="2GiB", help="of memory (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=None, help="for the model and its copy: twice its size")
    parser.add_argument("--keep", type=Path, default=None, metavar="MODEL", help="a mixture that was made before")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, document.printed("bench/on_disk.py", options.write):
        model = options.keep or Path(folder) / "model"
        if not model.is_dir():
            model.mkdir()
            write_random_model(mixture(options.layers), model, torch.bfloat16)
        size, limit = (model / "model.safetensors").stat().st_size, parse_size(options.limit, "--limit")
        found = measured(model, limit, options.tokens)
        print(
            f"**A mixture of experts larger than memory** (`python bench/on_disk.py`). {format_size(size)} of random "
            "weights in bfloat16, of which a token meets 8 of 64 experts in each layer; memory of the whole process, "
            "and what the system keeps of files for it, limited to the first column.\n"
        )
        print("| memory | ready after (s) | decode, tokens/s | prompt of 512, tokens/s | anonymous memory at most |")
        print("| --- | --- | --- | --- | --- |")
        for each in found:
            print(
                f"| {each.name} | {each.loaded:.1f} | {each.decode:.2f} | {each.prompt:.1f} | "
                f"{format_size(each.anonymous)} |"
            )
        alike = all(each.tokens == found[0].tokens for each in found)
        print(f"\nAll answers have the same tokens: {'yes' if alike else 'NO'}.")


if __name__ == "__main__":
    main()
