"""Golden cases as files: a tiny model whose weights follow from their names, and what its reference answers.

A case is a JSON file: `config` and `files` as a model folder has them, `tensors` (name to shape, center and scale of
values drawn from the name), and `cases`, prompts with answers. `notes` says what is special about it. Pictures,
films and sounds of a prompt are recipes too.
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

Case = dict[str, Any]


def values(name: str, spec: dict[str, Any]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The values that a tensor's name stands for: uniform in center plus or minus scale, float32.

    `stream` is another tensor's name, whose values it has; `transposed`: turned round.
    """
    turned = spec.get("transposed", False)
    drawn = noise(spec.get("stream", name), spec["shape"][::-1] if turned else spec["shape"])
    drawn = np.float32(spec["center"]) + np.float32(spec["scale"]) * drawn
    return np.ascontiguousarray(drawn.T if turned else drawn, np.float32)


def noise(name: str, shape: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Values in [-1, 1) that follow from the name."""
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((words >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32).reshape(shape)


def picture(spec: dict[str, Any], name: str | None = None) -> Image.Image:
    """A picture of `cells` (rows, columns) squares of `cell` pixels a side, each of a random colour."""
    rows, columns = spec["cells"]
    cells = np.floor((noise(f"image:{name or spec['name']}", (rows, columns, 3)) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(cells.repeat(spec["cell"], 0).repeat(spec["cell"], 1))


def film(spec: dict[str, Any]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """`frames` pictures: uint8 of shape (frames, height, width, 3)."""
    return np.stack([np.asarray(picture(spec, f"{spec['name']}:{k}")) for k in range(spec["frames"])])


def sound(spec: dict[str, Any]) -> "tuple[np.ndarray[Any, np.dtype[np.float32]], int]":
    """`samples` of noise, and their `rate` a second."""
    return 0.1 * noise(f"audio:{spec['name']}", (spec["samples"],)), spec["rate"]


def media(case: Case) -> dict[str, list[Any]]:
    """What stands in a prompt's `multi_modal_data` for its recipes; empty for a prompt of text."""
    kinds: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
        "image": ("images", picture),
        "video": ("videos", film),
        "audio": ("audios", sound),
    }
    return {kind: [make(one) for one in case[key]] for kind, (key, make) in kinds.items() if case.get(key)}


def spec(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """A recipe that makes a tiny model loud, so that what is wrong shows: about as much comes out of a product as
    went in, norms are around one, and biases are not zero."""
    if len(shape) < 2:
        is_norm = "norm" in name.lower() or ".ln" in name
        return {"shape": list(shape), "center": 1.0 if is_norm and name.endswith("weight") else 0.0, "scale": 0.2}
    scale = 0.25 if "embed" in name or "wte" in name else math.sqrt(6 / shape[-1])
    return {"shape": list(shape), "center": 0.0, "scale": round(scale, 6)}


def write_model(case: Case, folder: Path) -> Path:
    """The case as a model folder: config.json, its other files, model.safetensors; or Mistral's names of these.

    Tensors whose names have a slash lie in the folder before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / case.get("config_file", "config.json")).write_text(json.dumps(case["config"]))
    for name, text in case["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    tensors = {name: values(name, of) for name, of in case["tensors"].items()}
    weights = "consolidated.safetensors" if case.get("config_file") == "params.json" else "model.safetensors"
    save_tensors(tensors, folder, weights)
    return folder


def save_tensors(tensors: "dict[str, np.ndarray[Any, Any]]", folder: Path, file: str) -> None:
    """Tensors as files of this name; those whose names have a slash in the folder before it."""
    for place in {name.rpartition("/")[0] for name in tensors}:
        own = {name.rpartition("/")[2]: tensor for name, tensor in tensors.items() if name.rpartition("/")[0] == place}
        save_file(own, folder / place / file, metadata={"format": "pt"})
