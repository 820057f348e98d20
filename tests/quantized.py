"""Golden cases of quantized checkpoints: tensors of integers and small floats by recipe, and the folder around them.

Values follow from a tensor's name as those of other cases do (octavo.tools.recipe). Beside `center` and `scale`, a
recipe may have a `dtype`; `low` and `high` of integers, `bits` for several of them in one element, the first in the
lowest; `values`, or `table` for the case's own; `order` for the groups of inputs; `text` for its bytes.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.tools.recipe import values

FOLDER = Path(__file__).parent / "golden" / "quantized"
CASES = sorted(FOLDER.glob("*.json"))
BITS = {"int32": 32, "uint8": 8, "int8": 8}


def drawn(name: str, count: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(count)
    return (words >> np.uint64(40)).astype(np.int64)


def tensor(name: str, spec: dict[str, Any], tables: dict[str, list[float]]) -> Tensor:
    """The tensor that a recipe makes."""
    if "text" in spec:
        return torch.tensor(list(spec["text"].encode()), dtype=torch.uint8)
    shape, dtype = spec["shape"], getattr(torch, spec.get("dtype", "float32"))
    count = int(np.prod(shape))
    if "order" in spec:
        plain = np.arange(count) // spec["group"]
        places = np.arange(count)[::-1] if spec["order"] == "reversed" else np.arange(count) * spec["step"] % count
        return torch.from_numpy(plain[places].copy()).to(dtype)
    if "values" in spec or "table" in spec:
        given = tables[spec["table"]] if "table" in spec else spec["values"]
        return torch.from_numpy(np.resize(np.asarray(given), count)).to(dtype).reshape(shape)
    if "low" in spec:
        fields = BITS[spec["dtype"]] // spec.get("bits", BITS[spec["dtype"]])
        codes = drawn(name, count * fields) % (spec["high"] - spec["low"] + 1) + spec["low"]
        whole = (codes.reshape(count, fields) << (np.arange(fields) * spec.get("bits", 0))).sum(1)
        return torch.from_numpy(whole).to(dtype).reshape(shape)  # the highest bits wrap round
    return torch.from_numpy(values(name, spec)).to(dtype)


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor(name, spec, case.get("tables", {})) for name, spec in case["tensors"].items()}


def write(case: dict[str, Any], folder: Path, changed: dict[str, Tensor | None] | None = None) -> Path:
    """The case as a model folder; `changed` has other tensors for some names, or None for none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    for name, content in case["files"].items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    every = {**tensors(case), **(changed or {})}
    said = {k: v if isinstance(v, str) else json.dumps(v) for k, v in case.get("safetensors_metadata", {}).items()}
    found = {name: of.contiguous() for name, of in every.items() if of is not None}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt", **said})
    return folder


def case_named(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())
