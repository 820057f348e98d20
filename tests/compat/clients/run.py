"""`make clients`: programs that use a server of OpenAI's, Anthropic's or vLLM's kind, or vLLM itself, run as users do.

Each is installed from PyPI into an environment of its own, since they want different versions of the same packages, and
runs a program of tests/compat/clients/programs against a small real model, or, as lm_eval and vLLM's examples, its own.
Run from the repository's folder by the project's Python. `--only NAMES` runs some; without it `--write` tells
docs/compatibility.md. Where VLLM_EXAMPLES names a folder with vLLM's examples, those run too.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.config import EngineArgs
from octavo.loading.model_files import find_model
from tests.compat.clients.hub import write_kind
from tests.conftest import SMOLLM
from tests.server.running import Running, server

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "compatibility.md"
ENVIRONMENTS = ROOT / "build" / "clients"
WITHIN = 600.0
"""Seconds for one program."""
TABLES = re.compile(r"(<!-- (clients|examples): made by `make clients` -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
EXAMPLES = "VLLM_EXAMPLES"
"""The variable that names a folder with vLLM's examples."""


@dataclass(frozen=True)
class Client:
    """A program that somebody else wrote, and how it is run.

    Args:
        name: the package whose version is told.
        packages: what is installed.
        command: what its environment's Python runs; `{chat}`, `{embed}` are servers, `{tiny}` a model's folder.
        tried: what of it is run, for people.
        sees_octavo: whether it runs in one environment with Octavo.
    """

    name: str
    packages: str
    command: str
    tried: str
    sees_octavo: bool = False


PROGRAMS = "tests/compat/clients/programs/"
LM_EVAL = "-m lm_eval run --include_path tests/compat/clients --tasks octavo_tiny_text"
CLIENTS = (
    Client(
        "openai",
        "openai",
        PROGRAMS + "openai_client.py {chat} {embed}",
        "chats, texts, responses, tools, objects, embeddings, files and batches, broken requests, streams left early",
    ),
    Client(
        "anthropic",
        "anthropic",
        PROGRAMS + "anthropic_client.py {chat}",
        "messages, streams with tools, counted tokens, broken requests",
    ),
    Client(
        "langchain-openai",
        "langchain-openai langchain-anthropic",
        PROGRAMS + "langchain_client.py {chat} {embed}",
        "chats, responses, messages: whole, streamed, at once; tools, objects; embeddings",
    ),
    Client(
        "llama-index-llms-openai-like",
        "llama-index-llms-openai-like",
        PROGRAMS + "llama_index_client.py {chat}",
        "texts and chats, whole and streamed; tools, objects",
    ),
    Client(
        "litellm",
        "litellm tenacity",
        PROGRAMS + "litellm_client.py {chat} {embed}",
        "chats, texts, responses, tools in streams, schemas, embeddings, ranking; errors told apart",
    ),
    Client(
        "instructor",
        "instructor",
        PROGRAMS + "instructor_client.py {chat}",
        "objects from tools and from schemas, whole and in pieces, asked again where they are not valid",
    ),
    Client(
        "pydantic-ai-slim",
        "pydantic-ai-slim[openai,anthropic]",
        PROGRAMS + "pydantic_ai_client.py {chat}",
        "agents over chats, responses and messages: texts, objects, tools, streams",
    ),
    Client(
        "dspy", "dspy", PROGRAMS + "dspy_client.py {chat}", "predictions by schemas: whole, streamed, several at once"
    ),
    Client(
        "guidellm",
        "guidellm",
        "-m guidellm run --backend kind=openai_http,target={chat},model=chat --profile kind=concurrent,streams=2 "
        "--constraint kind=max_requests,count=6 --data kind=synthetic_text,prompt_tokens=16,output_tokens=8 "
        "--tokenizer kind=huggingface_auto,model={tiny} --output kind=json,path={made}/guidellm.json",
        "a load of chats, streamed",
    ),
    Client(
        "lm_eval",
        "lm_eval[api]>=0.4.9",
        "tests/compat/clients/lm_eval_runs.py",
        "`--model vllm`, local-completions and local-chat-completions on tasks of its own",
        sees_octavo=True,
    ),
)


@dataclass(frozen=True)
class Report:
    client: Client
    version: str
    fault: str


def environment(client: Client) -> Path:
    """The Python of a client's environment, made where it is not there. Raises CalledProcessError."""
    folder = ENVIRONMENTS / client.name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        if client.sees_octavo:
            inner = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            Path(inner.decode().strip(), "octavo.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, *client.packages.split()], check=True)
        ready.touch()
    return python


def version(python: Path, name: str) -> str:
    program = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.check_output([python, "-c", program], text=True).strip()


def run(client: Client, places: dict[str, str]) -> Report:
    """What became of a client's program."""
    try:
        python = environment(client)
    except subprocess.CalledProcessError as error:
        return Report(client, "", f"it cannot be installed here: {error}")
    told = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    told["PYTHONPATH"] = str(ROOT) if client.sees_octavo else ""
    command = [str(python), *client.command.format(**places).split()]
    try:
        done = subprocess.run(
            command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False, errors="replace"
        )
        fault = "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:] or "no word"
    except subprocess.TimeoutExpired:
        fault = f"not done after {WITHIN:.0f} s"
    return Report(client, version(python, client.name), fault)


def traces(*servers: Running) -> str:
    """What servers told of errors that they did not expect; empty for none."""
    log = "".join("".join(one.log) for one in servers)
    return log[max(at - 3000, 0) : at + 3000] if (at := log.find("Traceback")) >= 0 else ""


def all_reports(only: list[str]) -> Iterator[Report]:
    """The reports of all clients, one after another."""
    model = str(find_model(EngineArgs(model=SMOLLM)).path)
    with tempfile.TemporaryDirectory() as made:
        tiny, embed = (write_kind(kind, Path(made) / kind) for kind in ("text", "embed"))
        names = ("--served-model-name", "chat", "gpt-4o-mini", "--files-folder", f"{made}/files")
        (Path(made) / "files").mkdir()
        pooling = ("--kv-cache-memory", "64MiB", "--runner", "pooling", "--served-model-name", "embed")
        with (
            server(model, "--kv-cache-memory", "512MiB", "--max-model-len", "2048", *names) as chat,
            server(str(embed), *pooling) as pooled,
        ):
            places = {"chat": chat.url, "embed": pooled.url, "tiny": str(tiny), "made": made}
            for client in CLIENTS:
                if not only or client.name in only:
                    report, left = run(client, places), traces(chat, pooled)
                    yield replace(report, fault=report.fault or left)


EXAMPLE = Client(
    "examples", "cohere pybase64 requests", "-m tests.compat.clients.examples {examples} {model}", "", True
)


def examples(folder: str) -> list[list[str]]:
    """Of each of vLLM's examples whether it ran, its name and what was wrong."""
    model = str(find_model(EngineArgs(model=SMOLLM)).path)
    command = [str(environment(EXAMPLE)), *EXAMPLE.command.format(examples=folder, model=model).split()]
    ran = list[list[str]]()
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            ran.append(line.rstrip("\n").split("\t"))
    return ran


def example_table(ran: list[list[str]]) -> str:
    lines = ["| example | |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | {'fails' if fault else 'runs'} |" for _, name, fault in ran])


def table(reports: list[Report]) -> str:
    lines = ["| program | version | what of it is run | |", "| --- | --- | --- | --- |"]
    for one in reports:
        lines.append(f"| {one.client.name} | {one.version} | {one.client.tried} | {'fails' if one.fault else 'runs'} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], choices=[client.name for client in CLIENTS])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    reports = list[Report]()
    for one in all_reports(options.only):
        print(f"{'FAULT' if one.fault else 'ok':6}{one.client.name} {one.version}", one.fault, flush=True)
        reports.append(one)
    folder = os.environ.get(EXAMPLES)
    ran = examples(folder) if folder and not options.only else []
    if options.write and not options.only:
        made = {"clients": table(reports)} | ({"examples": example_table(ran)} if ran else {})
        PAGE.write_text(TABLES.sub(lambda m: f"{m[1]}{made[m[2]]}\n{m[3]}" if m[2] in made else m[0], PAGE.read_text()))
    return 1 if any(one.fault for one in reports) or any(fault for _, _, fault in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
