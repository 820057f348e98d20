"""Models of any size with random weights, written as published checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.architectures import find_architecture
from octavo.parts import Into


def write_random_model(config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder with `config` and random tensors for all that its architecture wants."""
    with torch.device("meta"):
        architecture = find_architecture(config["architectures"])
        model = architecture.build(architecture.config(config))
    generator = torch.Generator().manual_seed(0)
    tensors, stacks = dict[str, torch.Tensor](), dict[str, list[torch.Tensor]]()
    for path, slot in model.weight_slots_in(dtype).items():
        for segment in slot.segments or (None,):
            owner, _, leaf = path.rpartition(".")
            part = path if segment is None else f"{owner}.{segment}.{leaf}"
            name = model.names.published(part)
            if name == part:  # published fused: the first of its segments stands for all
                name, segment = model.names.published(path), None
            rows = slot.rows(segment)
            shape = (rows.stop - rows.start, *slot.shape[1:])
            scale = 0.02 if len(shape) > 1 else 0.1
            values = torch.randn(shape, generator=generator) * scale
            values = (values + 1 if "norm" in name else values).to(dtype)
            into = model.names.locate(name)
            if into is not None and into.stacked:
                stacks.setdefault(name, []).append(values)
            else:
                tensors[name] = values
    for name, experts in stacks.items():
        tensors[name] = _published(torch.stack(experts), model.names.locate(name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _published(stack: torch.Tensor, into: Into | None) -> torch.Tensor:
    """Random tensors of all experts as one is published: turned round, where that is how it fits."""
    turned = stack.transpose(1, -1).contiguous()
    if into is None or into.transform is None or into.transform(stack).shape == stack.shape:
        return stack
    assert into.transform(turned).shape == stack.shape
    return turned
