"""Golden cases as files: a tiny model whose weights follow from their names, and what its reference answers.

A case is a JSON file: `config` and `files` as a model folder has them, `tensors` (name to shape, center and scale of
values drawn from the name), and `cases`, prompts with answers. `notes` says what is special about it.
"""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Case = dict[str, Any]


def values(name: str, spec: dict[str, Any]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The values that a tensor's name stands for: uniform in center plus or minus scale, float32."""
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(spec["shape"]))
    unit = ((words >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)
    drawn = np.float32(spec["center"]) + np.float32(spec["scale"]) * unit
    return np.ascontiguousarray(drawn.reshape(spec["shape"]), np.float32)


def spec(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """A recipe that makes a tiny model loud, so that what is wrong shows: about as much comes out of a product as
    went in, norms are around one, and biases are not zero."""
    if len(shape) < 2:
        is_norm = "norm" in name.lower() or ".ln" in name
        return {"shape": list(shape), "center": 1.0 if is_norm and name.endswith("weight") else 0.0, "scale": 0.2}
    scale = 0.25 if "embed" in name or "wte" in name else math.sqrt(6 / shape[-1])
    return {"shape": list(shape), "center": 0.0, "scale": round(scale, 6)}


def write_model(case: Case, folder: Path) -> Path:
    """The case as a model folder: config.json, its other files, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    for name, text in case["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    tensors = {name: values(name, of) for name, of in case["tensors"].items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
