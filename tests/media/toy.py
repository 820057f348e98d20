"""A tiny model that takes everything, as another package would bring it: for tests of what lies above the engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from octavo.architectures import Config, register_architecture
from octavo.architectures.llama import llama
from octavo.media.feature import Data, Span
from octavo.media.pictures import Picture
from octavo.media.processor import Processor
from octavo.media.sounds import Sound
from octavo.media.sources import Array
from octavo.parts import CausalLM, MediaData, MediaTower

ROOT = Path(__file__).parents[2]
TOKENS = {"image": 257, "video": 258, "audio": 259}
SIZE = 48
"""Values of a row."""


class ToyProcessor(Processor):
    """Four rows for a picture, one for a frame, three for a sound."""

    family = "Toy"
    takes = {"image": None, "video": 1, "audio": None}  # noqa: RUF012  as families write it
    embeds = frozenset({"image"})
    image_mark, video_mark, audio_mark = "<image>", "<video>", "<audio>"

    def token(self, kind: str) -> int:
        return TOKENS[kind]

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        pixels = np.asarray(picture.resize((8, 8)), np.float32).reshape(4, SIZE)
        return {"rows": pixels / 255}, Span([TOKENS["image"]] * 4)

    def video(self, frames: Array, index: int, count: int) -> tuple[Data, Span]:
        rows = np.stack([np.resize(frame, SIZE) for frame in frames]).astype(np.float32) / 255
        return {"rows": rows}, Span([TOKENS["video"]] * len(frames))

    def audio(self, sound: Sound, index: int, count: int) -> tuple[Data, Span]:
        return {"rows": np.resize(sound.samples, (3, SIZE)).astype(np.float32)}, Span([TOKENS["audio"]] * 3)


class ToyTower(MediaTower):
    """Repeats the values of each row to the size of the text's."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, kind: str, items: list[MediaData]) -> list[Tensor]:  # type: ignore[override]
        repeats = -(-self.hidden_size // SIZE)
        return [item["rows"].float().repeat(1, repeats)[:, : self.hidden_size].to(self.dtype) for item in items]


def register() -> None:
    """The plugin's entry point."""

    @register_architecture("ToyForConditionalGeneration", about="a toy", media=ToyProcessor)
    def toy(c: Config) -> CausalLM:
        return llama(c).with_media(ToyTower(c.hidden_size), {})


def write_toy(folder: Path, tiny: Path) -> Path:
    """The toy's folder, made of the tiny Llama in `tiny`, whose tokenizer gets its marks."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image>", "<video>", "<audio>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["ToyForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def install_toy(folder: Path) -> dict[str, str]:
    """The environment of a process that finds the plugin, whose package lies in `folder`."""
    about = folder / "toy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[octavo.architectures]\ntoy = tests.media.toy:register\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}
