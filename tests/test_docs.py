"""Every example in README.md and docs/ runs.

`python` blocks run as scripts. `console` blocks hold a command a line, and run in a shell with this environment's
`octavo`. A block with a comment `<!-- not run: why -->` before it is left out; `make` commands are run by .ci/run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapter_folders import write_adapter
from tests.golden import case_named, write_model
from tests.media.test_hostile import film, saved, wav
from tests.server.conftest import write_tiny
from tests.whisper_models import write_whisper

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- not run: [^>]+-->\s*)?^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str, str]]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for i, match in enumerate(BLOCK.finditer(path.read_text())):
            if not match[1]:
                found.append((f"{path.name}-{i}", match[2], match[3]))
    return found


STAND_INS = {
    "llava-hf/llava-1.5-7b-hf": "LlavaForConditionalGeneration--1.5-7b",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "LlavaOnevisionForConditionalGeneration--qwen2-7b-ov",
    "Qwen/Qwen2-VL-2B-Instruct": "Qwen2VLForConditionalGeneration--7b",
    "Qwen/Qwen2-Audio-7B-Instruct": "Qwen2AudioForConditionalGeneration--7b",
    "royokong/e5-v": "LlavaNextForConditionalGeneration--embed-e5-v",
}
"""Tiny models of golden cases, in folders that are called as the published ones."""
WHISPER = "openai/whisper-small"
"""Likewise, of random weights, for sounds of two seconds at once."""
SMOLLM, ADAPTERS = "HuggingFaceTB/SmolLM2-135M-Instruct", ("sql-adapter", "poems-adapter")
"""Likewise, with a tokenizer; and its adapters."""


def write_inputs(text: str, folder: Path) -> None:
    """The models that an example names and is to find small, and its media."""
    for name, case in STAND_INS.items():
        if name in text:
            (folder / name).mkdir(parents=True)
            write_model(case_named(case), folder / name)
    if SMOLLM in text:
        model = write_tiny(folder / SMOLLM)
        for seed, name in enumerate(ADAPTERS):
            if name in text:
                write_adapter(folder / name, model, seed)
    if WHISPER in text:
        (folder / WHISPER).mkdir(parents=True)
        write_whisper(folder / WHISPER)
    (folder / "photo.jpg").write_bytes(saved("JPEG"))
    (folder / "clip.mp4").write_bytes(film(12))
    (folder / "voice.wav").write_bytes(wav())


@pytest.mark.parametrize(("kind", "text"), [b[1:] for b in blocks()], ids=[b[0] for b in blocks()])
def test_example_runs(kind: str, text: str, tmp_path: Path) -> None:
    if 'backend="ray"' in text:
        pytest.importorskip("ray")
    if "from peft " in text:
        pytest.importorskip("peft")
    lines = [line for line in text.splitlines() if not line.startswith("make ")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, content in re.findall(r"^# file: (\S+)\n(.*?)(?=^# file:|\Z)", text, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(content)
    write_inputs(text, tmp_path)
    script = tmp_path / "example"
    script.write_text("\n".join(lines) if kind == "python" else "set -e\n" + "\n".join(lines))
    command = [sys.executable if kind == "python" else "bash", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_tables_are_the_codes() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    from tables import CONFORMANCE, PAGE, PLACES, PRECISION, conformance, with_table

    assert conformance() == CONFORMANCE.read_text(), "run `make docs`"
    assert with_table(PRECISION) == PRECISION.read_text(), "precision.md is out of date: run `make docs`"
    assert "| gptq |" in PRECISION.read_text()
    assert with_table(PAGE) == PAGE.read_text(), "compatibility.md is out of date: run `make docs`"
    for place in PLACES:
        assert with_table(place) == place.read_text(), f"{place.name} is out of date: run `make docs`"
        assert "| LlamaForCausalLM |" in place.read_text()
