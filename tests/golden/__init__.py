"""Golden cases: tiny models in published formats, and what their reference implementations answer.

A case is a JSON file: `config` and `files` as a model folder has them, `tensors` (name to shape, center and scale of
values drawn from the name), and `cases`, prompts with answers. `notes` says what is special about it.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def read_case(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def case_named(name: str) -> dict[str, Any]:
    return read_case(Path(__file__).parent / "cases" / f"{name}.json")


def tensor(name: str, spec: dict[str, Any]) -> np.ndarray:
    """The values that a tensor's name stands for: uniform in center plus or minus scale."""
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(spec["shape"])))
    unit = ((words >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)
    return (np.float32(spec["center"]) + np.float32(spec["scale"]) * unit).reshape(spec["shape"])


def tensors(case: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor(name, spec)) for name, spec in case["tensors"].items()}


def write_model(case: dict[str, Any], folder: Path) -> Path:
    """The case as a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    for name, text in case["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    save_file(tensors(case), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
