"""Adapters for tests: those of golden cases, and random ones of every linear layer that a checkpoint has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from octavo import LLM, LoRARequest
from octavo.parts.head_linear import HeadLinear
from octavo.parts.linear_layer import Linear
from octavo.tools.recipe import noise, values
from tests.golden import read_case, tensors

LORA_CASES = sorted((Path(__file__).parent / "golden" / "lora").glob("*.json"))
BEGINNING = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 12, "target_modules": "all-linear"}

Tensors = dict[str, "np.ndarray[Any, Any]"]


def lora_case(name: str) -> dict[str, Any]:
    return read_case(next(path for path in LORA_CASES if path.stem == name))


def save_adapter(folder: Path, config: dict[str, Any], weights: Tensors) -> Path:
    """A folder as PEFT writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def adapter_tensors(case: dict[str, Any], name: str) -> Tensors:
    return {t: values(f"{name}/{t}", spec) for t, spec in case["adapters"][name]["tensors"].items()}


def requests_of(case: dict[str, Any], folder: Path) -> dict[str | None, LoRARequest | None]:
    """A request for each of a case's adapters, whose files are written; None for the bare base."""
    requests: dict[str | None, LoRARequest | None] = {None: None}
    for i, (name, adapter) in enumerate(case["adapters"].items()):
        where = save_adapter(folder / name, adapter["adapter_config"], adapter_tensors(case, name))
        requests[name] = LoRARequest(name, i + 1, str(where))
    return requests


def largest_rank(case: dict[str, Any]) -> int:
    ranks = [8]
    for adapter in case["adapters"].values():
        config = adapter["adapter_config"]
        ranks += [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def every_layer(llm: LLM, case: dict[str, Any], seed: str, rank: int = 8) -> tuple[Tensors, Tensors]:
    """A random adapter of every linear layer of a loaded case, and the checkpoint's tensors with it merged.

    The merging is numpy's, on published names alone: it is what the engine's own way is compared with.
    """
    model, base = llm.engine.executor.runner.model, tensors(case)
    linear = {path for path, part in model.named_modules() if isinstance(part, (Linear, HeadLinear))}
    adapter, merged, scale = Tensors(), Tensors(base), CONFIG["lora_alpha"] / rank
    for name, weight in base.items():
        into = model.names.locate(name)
        if into is None or into.stacked or weight.ndim != 2 or not name.endswith(".weight"):
            continue
        owner = into.path.removesuffix(".weight")
        if owner not in linear and owner.rpartition(".")[0] not in linear:
            continue
        turned = into.transform is not None and into.transform.__name__ == "_transpose"
        outputs, inputs = weight.shape[::-1] if turned else weight.shape
        module = name.removesuffix(".weight")
        a = noise(f"{seed}/{name}/a", (rank, inputs)) * np.float32((3 / inputs) ** 0.5)
        loud = float(np.sqrt((weight.astype(np.float64) ** 2).mean() * inputs))
        b = noise(f"{seed}/{name}/b", (outputs, rank)) * np.float32(0.5 * loud * (3 / rank) ** 0.5 / scale)
        adapter[f"{BEGINNING}{module}.lora_A.weight"] = a
        adapter[f"{BEGINNING}{module}.lora_B.weight"] = b
        delta = scale * (b.astype(np.float64) @ a.astype(np.float64))
        merged[name] = (weight + (delta.T if turned else delta)).astype(np.float32)
    return adapter, merged
