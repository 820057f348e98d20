"""Models of any size with random weights, written as published checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.architectures import find_architecture
from octavo.loading.precision import Precision
from octavo.loading.weights import WeightLoader
from octavo.ops import select_backend


def write_random_model(config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder with `config` and random tensors for all that its architecture wants."""
    with torch.device("meta"):
        architecture = find_architecture(config["architectures"])
        model = architecture.build(architecture.config(config))
    loader = WeightLoader(model, Precision(dtype, dtype, dtype), select_backend(torch.device("cpu"), "torch"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path, slot in loader.slots.items():
        for segment in sorted(slot.missing, key=str):
            rows = slot.module.segment(segment) if segment else slice(0, slot.shape[0])
            owner = path.rpartition(".")[0]
            part = path if segment is None else f"{owner}.{segment}.{slot.name}"
            name = model.names.published(part)
            if name == part:  # published fused: the first of its segments stands for all
                name, rows = model.names.published(path), slice(0, slot.shape[0])
            shape = (rows.stop - rows.start, *slot.shape[1:])
            scale = 0.02 if len(shape) > 1 else 0.1
            values = torch.randn(shape, generator=generator) * scale
            tensors[name] = (values + 1 if "norm" in name else values).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
