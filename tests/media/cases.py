"""Golden cases of rows with media: a tiny model each, with what the reference's processor makes and answers."""

import json
from pathlib import Path
from typing import Any

from octavo.architectures import all_architectures
from octavo.media.processor import Processor, ProcessorFiles, read_processor_files
from octavo.media.sounds import Sound
from octavo.text.tokenizer import load_tokenizer
from octavo.tools import recipe
from tests import golden

CASES = [path for path in golden.CASES if golden.has_media(golden.read_case(path))]


def read_case(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case


def path_of(name: str) -> Path:
    """The case of this row and variant, or the first that begins so."""
    return next(path for path in CASES if path.stem.startswith(name))


def processor_class(case: dict[str, Any]) -> type[Processor]:
    """What makes features of the media of a case's model, whatever a test has changed of its config."""
    row, stored = all_architectures()[case["row"]], read_case(path_of(f"{case['row']}--{case['variant']}"))
    made = row.processor(row.config(golden.config_of(stored)))
    assert made is not None
    return made


def load(case: dict[str, Any], folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Processor:
    """The processor of a case, whose files are written to `folder`; `changes` are of preprocessor_config.json."""
    for name, text in case["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    made = processor_class(case)
    files = read_processor_files(folder, case["config"])
    files = ProcessorFiles(files.config, {**files.preprocessor, **(changes or {})}, files.processor, files.video)
    tokenizer = load_tokenizer(folder, False) if (folder / "tokenizer.json").exists() else None
    return made(files, tokenizer, **options)


def media(case: dict[str, Any]) -> dict[str, list[Any]]:
    """What a case's recipes give, decoded: images, videos and audios."""
    data = recipe.media(case)
    return {
        "images": data.get("image", []),
        "videos": data.get("video", []),
        "audios": [Sound(*sound) for sound in data.get("audio", [])],
    }
