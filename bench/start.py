"""How long a start takes, and what memory there is beside the weights: `python bench/start.py`, with --write into
docs/performance.md.

Seconds from starting the command to the first byte of its answer, of SmolLM2 and of a random Llama of 1.1B as GGUF
files and as a folder, the files in the system's cache: where weights are packed (the first start, or packed_cache=0),
and where an earlier start's are mapped. By turns with them run ik_llama.cpp, where bench/peers.py has installed it, and
another tree of Octavo's (--before). Processor seconds stand beside, since they tell more where a machine is shared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import document
from models import MODELS

WORKER = Path(__file__).with_name("peers_worker.py")
MEMORY = """
import json, sys
from pathlib import Path
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1], skip_tokenizer_init=True)
llm.generate([list(range(200, 328))], SamplingParams(max_tokens=64, ignore_eos=True, detokenize=False), use_tqdm=False)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({name: int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")}
    | {"weights": llm.engine.executor.rank_weight_bytes[0]}))
"""


@dataclass
class Contender:
    """A command that answers, and what it took each time."""

    name: str
    command: list[str]
    settings: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **self.settings}
        begun = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"{self.name} answered nothing: {' '.join(self.command)}")
        self.seconds.append(time.perf_counter() - begun)
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
        self.cpu.append(used.ru_utime + used.ru_stime)


def octavo(model: Path, tree: Path) -> tuple[list[str], dict[str, str]]:
    """The command; of a folder, which has no tokenizer, what is measured of peers."""
    settings = {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    if model.is_dir():
        threads = str(len(os.sched_getaffinity(0)))
        return [sys.executable, str(WORKER), "octavo", str(model), "cold", threads], settings
    command = [sys.executable, "-m", "octavo", "generate", "Once", "--raw", "--max-tokens", "1", "--model", str(model)]
    return command, settings


def contenders(model: Path, cache: Path, options: argparse.Namespace) -> list[Contender]:
    command, settings = octavo(model, document.ROOT)
    found = [
        Contender("octavo, weights mapped", command, {**settings, "XDG_CACHE_HOME": str(cache)}),
        Contender("octavo, weights packed", command, {**settings, "OCTAVO_PACKED_CACHE": "0"}),
    ]
    if options.before is not None:
        found.append(Contender("octavo before", *octavo(model, options.before)))
    python = options.environments / "ik_llama.cpp" / "bin" / "python"
    if model.suffix == ".gguf" and python.exists():
        threads = str(len(os.sched_getaffinity(0)))
        found.append(Contender("ik_llama.cpp", [str(python), str(WORKER), "ik_llama.cpp", str(model), "cold", threads]))
    return found


def memory(model: Path, cache: Path) -> str:
    settings = {**octavo(model, document.ROOT)[1], "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", MEMORY, str(model)]
    done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    beside = (found["VmRSS"] - found["weights"]) / 1e6
    return (
        f"Resident after 192 tokens: {found['VmRSS'] / 1e6:.0f} MB, {found['weights'] / 1e6:.0f} of them weights: "
        f"{beside:.0f} MB beside these, caches, libraries and their code included ({found['RssAnon'] / 1e6:.0f} MB of "
        "all is this process's alone, the rest pages of files, which processes share)."
    )


def measured(title: str, model: Path, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=model.parent if model.is_file() else model) as cache:
        everyone = contenders(model, Path(cache), options)
        for contender in everyone:  # files come into the system's cache, and the copy into its folder
            contender.run()
            contender.seconds.clear()
            contender.cpu.clear()
        for _ in range(options.rounds):
            for contender in everyone:
                contender.run()
        print(f"**{title}**\n\n| | to the first token (s) | least (s) | processor (s) |\n| --- | --- | --- | --- |")
        for each in everyone:
            figures = (statistics.median(each.seconds), min(each.seconds), statistics.median(each.cpu))
            print(f"| {each.name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
        print(f"\n{memory(model, Path(cache))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--models", default="small,large", help="of: small (SmolLM2), large (1.1B)")
    parser.add_argument("--types", default="Q4_0,bfloat16", help="GGUF types, and bfloat16 of the folder")
    parser.add_argument("--before", type=Path, metavar="TREE", help="another tree of Octavo, compiled, to compare with")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    options.environments = options.environments.absolute()
    with document.printed("bench/start.py", options.write), tempfile.TemporaryDirectory() as folder:
        print(f"### Start\n\n`bench/start.py`: medians of {options.rounds} rounds by turns.\n")
        for name in options.models.split(","):
            place = Path(folder) / name
            place.mkdir(exist_ok=True)
            model = MODELS[name](place)
            for kind in options.types.split(","):
                measured(f"{model.name}, {kind}", model.file(kind, None), options)


if __name__ == "__main__":
    main()
