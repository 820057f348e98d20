"""Octavo against its peers, measured in one run on this machine: `make bench`, or `python bench/peers.py --help`.

SmolLM2-135M, a random Llama of 1.1B and a random mixture of 64 experts, as GGUF files of several types and, but for the
last, as a folder in bfloat16. OpenVINO GenAI and ik_llama.cpp are installed from PyPI into environments of their own,
transformers is in Octavo's; for llama-cpp-python and vLLM, give an interpreter that has them. Every figure comes from a
process of its own, and rounds are interleaved, so that a drift of the machine's speed meets all alike. The tables hold
medians; no figure fails it. With --write they replace those of this processor and model in README.md and
docs/performance.md, wins and losses alike.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import document
from machine import measure, table
from models import MODELS, OF_FOLDERS, Model

from octavo.cli.env import processor
from octavo.ops.native.library import runnable

WORKER = Path(__file__).with_name("peers_worker.py")
ONE, MANY, PREFILL, COLD, MEMORY = (
    "decode, batch 1",
    "decode, batch 16",
    "prefill 1024",
    "start to first token",
    "memory beside weights and KV",
)
UNITS = {ONE: "tokens/s", MANY: "tokens/s", PREFILL: "tokens/s", COLD: "s", MEMORY: "MB"}
LOWER_IS_BETTER = (COLD, MEMORY)
INSTALLED = {
    "openvino": ("openvino-genai", "openvino", "openvino-tokenizers"),
    "ik_llama.cpp": ("ik-llama-cpp-python",),
}
"""Peers that install from wheels, and what they are."""
SWITCHES = {"avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
"""How PyTorch is kept to an instruction set. OpenVINO runs with no such switch, and ik_llama.cpp's wheel is AVX2's."""


@dataclass(frozen=True)
class Contender:
    """An engine with a file and a way to compute."""

    engine: str
    kind: str
    """What the weights are in: a GGUF type, or of a folder the number type."""
    file: Path
    python: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.engine}, {self.kind}" + (" (its class)" if "through_class=1" in self.options else "")

    @property
    def size(self) -> int:
        """Bytes of the weights as they are computed with."""
        plain = self.file / "model.safetensors" if self.file.is_dir() else self.file
        return plain.stat().st_size // (2 if self.kind == "int8" else 1)


def interpreters(options: argparse.Namespace) -> dict[str, str]:
    """Of each peer that takes part, the Python that has it; what is missing is installed."""
    found = {"transformers": sys.executable}
    for peer, packages in INSTALLED.items():
        python = options.environments / peer / "bin" / "python"
        if not python.exists():
            print(f"installing {', '.join(packages)} into {python.parents[1]}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        found[peer] = str(python)
    for given in options.peer:
        peer, _, path = given.partition("=")
        found[peer] = path
    return {peer: path for peer, path in found.items() if peer not in options.without}


def quantizer_of(pythons: dict[str, str]) -> Path | None:
    """llama.cpp's program that rounds files, which ik_llama.cpp's wheel carries."""
    if "ik_llama.cpp" not in pythons:
        return None
    code = "from ik_llama_cpp.quantize import find_quantize_bin; print(find_quantize_bin())"
    done = subprocess.run([pythons["ik_llama.cpp"], "-c", code], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def rounded_to(kind: str) -> tuple[str, ...]:
    """Octavo's options for a kind of weights: what a folder in bfloat16 is rounded to."""
    return (f"quantization={kind}",) if kind in OF_FOLDERS and kind != "bfloat16" else ()


def contenders(model: Model, types: list[str], pythons: dict[str, str]) -> list[Contender]:
    """Everyone with every file that they read."""
    own, quantizer = sys.executable, quantizer_of(pythons)
    found = []
    for kind in types:
        try:
            file = model.file(kind, quantizer)
        except ValueError as error:
            print(f"{kind} is left out: {error}", file=sys.stderr)
            continue
        found.append(Contender("octavo", kind, file, own, rounded_to(kind)))
        readers = {"bfloat16": ("transformers", "vllm"), "int8": (), "q4": ()}
        peers = readers.get(kind, ("openvino", "ik_llama.cpp", "llama.cpp"))
        found += [Contender(peer, kind, file, pythons[peer]) for peer in peers if peer in pythons]
        if "ik_llama.cpp" in pythons and kind == types[0]:
            found.append(Contender("ik_llama.cpp", kind, file, pythons["ik_llama.cpp"], ("through_class=1",)))
    return found


def run(contender: Contender, mode: str, threads: int, environment: dict[str, str]) -> dict[str, float | None]:
    """One process's figures; none where it fails, which is said."""
    command = [contender.python, str(WORKER), contender.engine, str(contender.file), mode, str(threads)]
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | environment
    if contender.engine == "openvino":
        settings.pop("ONEDNN_MAX_CPU_ISA", None)
    done = subprocess.run([*command, *contender.options], capture_output=True, text=True, check=False, env=settings)
    if done.returncode:
        print(f"  {contender.name} ({mode}) failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))  # some write logs there
    figures: dict[str, float | None] = json.loads(line)
    print(f"  {contender.name}, {mode}: {figures}", file=sys.stderr, flush=True)
    return figures


Found = dict[Contender, dict[str, list[float]]]


def report(model: Model, threads: int, found: Found, machine: dict[str, float]) -> str:
    """Medians; in brackets how many times better Octavo with the same kind is, or the share of the machine."""
    middle = {c: {m: statistics.median(v) for m, v in figures.items() if v} for c, figures in found.items()}
    own = {c.kind: figures for c, figures in middle.items() if c.engine == "octavo"}
    lines = [
        f"**{model.name}, {threads} thread{'s' if threads > 1 else ''}**",
        "",
        "| | " + " | ".join(f"{m} ({UNITS[m]})" for m in UNITS) + " |",
        "| --- " * (len(UNITS) + 1) + "|",
    ]
    for contender, figures in middle.items():
        cells = []
        for metric in UNITS:
            if metric not in figures:
                cells.append("")
                continue
            value, same = figures[metric], own.get(contender.kind, {}).get(metric)
            shown = f"{value:.2f}" if metric == COLD else f"{value:.0f}"
            if contender.engine != "octavo" and same is not None:
                shown += f" ({value / same if metric in LOWER_IS_BETTER else same / value:.2f} x)"
            elif contender.engine == "octavo" and (share := _share(contender, model, metric, value, machine)):
                shown += f" ({share:.0%})"
            cells.append(shown)
        lines.append(f"| {contender.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(contender: Contender, model: Model, metric: str, value: float, machine: dict[str, float]) -> float | None:
    arithmetic = contender.kind if contender.kind == "bfloat16" else "int8"
    if metric == PREFILL and arithmetic in machine:
        return 2 * model.multiplied * value / machine[arithmetic] / 1e9
    if metric == ONE:  # every weight but a separate token table's is read once a token
        return model.read_share * contender.size * value / machine["read 1 GB"] / 1e9
    return None


@contextmanager
def only(instructions: str | None):  # type: ignore[no-untyped-def]
    """The environment in which Octavo and PyTorch compute with one instruction set."""
    if instructions is None:
        yield {}
        return
    folder = Path(os.environ.get("OCTAVO_CORE") or Path(document.ROOT, "octavo", "ops", "native"))
    with tempfile.TemporaryDirectory() as chosen:
        for name in (instructions, "processor"):
            for library in folder.glob(f"_core_{name}.*"):
                shutil.copy(library, chosen)
        yield {"OCTAVO_CORE": chosen, **SWITCHES.get(instructions, {})}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--models", default="small,large,mixture", help="of: small (SmolLM2), large (1.1B), mixture")
    parser.add_argument(
        "--types",
        default="Q4_0,Q4_1,Q8_0,bfloat16,int8",
        help="GGUF types (Q4_0, Q4_1, Q4_K_M, Q6_K, Q8_0, IQ4_NL, BF16 ...), and of the folder bfloat16, int8, q4",
    )
    parser.add_argument("--threads", default="", help="for example 1,2 (default: all cores)")
    parser.add_argument("--instructions", help="measure this library of the core (avx2 ...), not the best one")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="another: llama.cpp=..., vllm=..."
    )
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a peer out")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md and docs/performance.md")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every single figure there")
    return parser.parse_args()


def shown_command(arguments: list[str]) -> str:
    """The command for who repeats it: without where this machine keeps things."""
    shown = " ".join(["bench/peers.py", *arguments])
    return re.sub(r" --(environments|json|peer)[ =]\S+", "", shown)


def note(options: argparse.Namespace) -> list[str]:
    """What a reader must know of a table for one instruction set."""
    if options.instructions is None:
        return []
    return [
        f"Only Octavo is held to {options.instructions} here. Its peers choose for themselves: OpenVINO takes what the "
        "processor has, AVX-512 included, and has no switch for it; ik_llama.cpp's wheel is compiled for AVX2."
    ]


def main() -> None:
    options = parsed()
    options.environments = options.environments.absolute()
    pythons = interpreters(options)
    counts = [int(n) for n in options.threads.split(",") if n] or [len(os.sched_getaffinity(0))]
    library = options.instructions or next(iter(runnable()), "torch")
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    with only(options.instructions) as environment:
        for name in options.models.split(","):
            with tempfile.TemporaryDirectory() as folder:
                model = MODELS[name](Path(folder))
                title, parts = f"{processor()}, {library}, {model.name}", list[str]()
                everyone = contenders(model, options.types.split(","), pythons)
                for threads in counts:
                    machine = measure(threads, options.instructions)
                    found: Found = {c: {m: [] for m in UNITS} for c in everyone}
                    for round_ in range(options.rounds):
                        print(f"{model.name}, {threads} threads: round {round_ + 1}", file=sys.stderr)
                        for contender in everyone:
                            for mode in ("cold", "steady"):
                                for metric, value in run(contender, mode, threads, environment).items():
                                    if value is not None:
                                        found[contender][metric].append(value)
                    parts += [report(model, threads, found, machine), f"{table(machine)}."]
                    figures[f"{model.name}, {threads}"] = {c.name: f for c, f in found.items()}
            text = "\n\n".join([f"### {title}", f"`{shown_command(sys.argv[1:])}`", *note(options), *parts])
            print(text)
            if options.write:
                document.fill(document.PERFORMANCE, f"bench/peers.py, {title}", text)
                if options.instructions is None and name == "small":
                    document.fill(document.README, "bench/peers.py", "\n\n".join([f"On an {title}:", *parts[:2]]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
