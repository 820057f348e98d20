"""Adapters for tests: folders as PEFT writes them, with random tensors for the linear layers of a model's folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

LAYERS = ("q_proj", "v_proj", "down_proj")


def shapes_of(model: Path, layers: Sequence[str] = LAYERS) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear layers of a model's folder that end so, by their module's names."""
    with safe_open(model / "model.safetensors", "np") as file:
        names = [name for name in file.keys() if name.endswith(tuple(f"{layer}.weight" for layer in layers))]  # noqa: SIM118
        return {name.removesuffix(".weight"): tuple(file.get_slice(name).get_shape()) for name in sorted(names)}


def write_adapter(
    folder: Path, model: Path, seed: int = 0, *, rank: int = 4, scale: float = 0.3, **config: Any
) -> Path:
    """An adapter of a model's folder, whose answers differ from the model's and from those of other seeds.

    Args:
        folder: where to write it; files that are there are replaced.
        model: with safetensors.
        seed: of its tensors.
        rank: of its matrices.
        scale: of their values.
        config: keys of adapter_config.json instead of the usual ones.
    """
    random = np.random.default_rng(seed)
    tensors = dict[str, np.ndarray]()
    for name, (outputs, inputs) in shapes_of(model).items():
        module = f"base_model.model.{name}"
        tensors[f"{module}.lora_A.weight"] = random.normal(size=(rank, inputs)).astype(np.float32) * scale
        tensors[f"{module}.lora_B.weight"] = random.normal(size=(outputs, rank)).astype(np.float32) * scale
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [*LAYERS], "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
