"""Pictures, films and sounds on the command line, with a toy model that takes all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from octavo.cli.models import inputs_of, rows
from octavo.media.processors.blip2 import Blip2Processor
from octavo.media.processors.fuyu import FuyuProcessor
from octavo.media.processors.llava import LlavaProcessor
from octavo.media.processors.llava_onevision import LlavaOnevisionProcessor
from octavo.media.processors.qwen2_vl import Qwen2VLProcessor
from octavo.media.processors.ultravox import UltravoxProcessor
from tests.media.test_hostile import film, saved, wav
from tests.media.toy import install_toy, write_toy
from tests.server.conftest import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model in `toy`, one of text alone in `tiny`, the plugin in `site`, and files."""
    made = tmp_path_factory.mktemp("media-files")
    write_toy(made / "toy", write_tiny(made / "tiny"))
    install_toy(made / "site")
    (made / "photo.png").write_bytes(saved("PNG"))
    Image.new("RGB", (31, 20)).save(made / "other.png")
    (made / "clip.mp4").write_bytes(film(5))
    (made / "voice.wav").write_bytes(wav())
    (made / "text.png").write_text("no picture")
    return made


def octavo(folder: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'site'}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "octavo", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=120, cwd=folder, env=environment
    )  # fmt: skip


MODEL = ("--model", "toy", "--kv-cache-memory", "32MiB", "--max-tokens", "5")


def generate(folder: Path, *arguments: str) -> dict[str, int | str]:
    done = octavo(folder, "generate", *arguments, *MODEL, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return {"tokens": answer["num_prompt_tokens"], "text": answer["outputs"][0]["text"]}


def test_generate(folder: Path) -> None:
    plain = generate(folder, "What?")
    one = generate(folder, "What?", "--image", "photo.png")
    assert one["tokens"] == plain["tokens"] + 4 + 1  # its rows, and a line's end
    assert generate(folder, "What?", "--image", "other.png")["text"] != one["text"]
    files = ("--image", "photo.png", "--image", "other.png", "--video", "clip.mp4", "--audio", "voice.wav")
    assert generate(folder, "What?", *files)["tokens"] == plain["tokens"] + 4 + 4 + 5 + 3 + 4
    raw = generate(folder, "What?", "--raw", "--image", "photo.png")
    assert raw["tokens"] == len("What?") + 4 + 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "missing.png"), "--image cannot be read from missing.png"),
        (("--image", "."), "--image cannot be read"),
        (("--image", "text.png"), "no picture"),
        (("--video", "clip.mp4", "--video", "clip.mp4"), "2 video items"),
        (("--image", "photo.png", "--limit-mm-per-prompt", "image=0"), "limit_mm_per_prompt allows 0"),
        (("--image", "photo.png", "--limit-mm-per-prompt", "picture=1"), "no kind 'picture'"),
        (("--image", "photo.png", "--mm-processor-kwargs", '{"crops": 1}'), "no mm_processor_kwargs 'crops'"),
        (("--image", "photo.png", "--media-io-kwargs", '{"video": {"frames": 1}}'), "no option 'frames'"),
    ],
)
def test_refusals_are_one_line(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = octavo(folder, "generate", "What?", *MODEL, *arguments)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_model_of_text_takes_none(folder: Path) -> None:
    done = octavo(folder, "generate", "What?", "--model", "tiny", "--image", "photo.png")
    assert done.returncode == 1
    assert "--image has no effect: this model takes text only" in done.stderr


def test_chat(folder: Path) -> None:
    lines = [
        "/image photo.png", "What?", "/image text.png", "/image missing.png", "/picture photo.png", "/video clip.mp4",
        "/audio voice.wav", "And?", "/video clip.mp4", "/history", "/save talk.json", "/reset", "/history",
        "/load talk.json", "/retry", "/history", "/quit",
    ]  # fmt: skip
    done = octavo(folder, "chat", *MODEL, stdin="\n".join(lines) + "\n")
    assert done.returncode == 1, done.stderr  # some of the lines are wrong
    assert done.stdout.count(f"user: [image {folder / 'photo.png'}] What?") == 2
    assert done.stdout.count(f"user: [video {folder / 'clip.mp4'}] [audio {folder / 'voice.wav'}] And?") == 2
    for said in ("no picture", "cannot be read", "there is no command /picture", "2 video items"):
        assert said in done.stderr
    talk = json.loads((folder / "talk.json").read_text())
    assert talk[0]["content"][0] == {"type": "image", "path": str(folder / "photo.png")}
    refused = octavo(folder, "chat", "--model", "tiny", stdin="/image photo.png\n")
    assert "tiny takes no image; it takes text only" in refused.stderr


def test_the_table_says_what_models_take() -> None:
    assert inputs_of(None) == "T"
    assert inputs_of(FuyuProcessor) == "T + I"
    assert inputs_of(Blip2Processor) == "T + I^E"
    assert inputs_of(LlavaProcessor) == "T + I^E+"
    assert inputs_of(LlavaOnevisionProcessor) == "T + I^+ + V^+"
    assert inputs_of(Qwen2VLProcessor, None) == "T + I^E+ + V^E+"
    assert inputs_of(UltravoxProcessor) == "T + A^E+"
    found = {row["architecture"]: row["inputs"] for row in rows()}
    assert found["LlamaForCausalLM"] == "T"
    assert found["Blip2ForConditionalGeneration"] == "T + I^E"
    assert found["ChatGLMModel"] == "T + I"
