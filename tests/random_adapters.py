"""Adapters of random numbers, as if they had been read from files."""

import json
from pathlib import Path

import torch

from octavo.config import EngineArgs
from octavo.loading.adapter_loader import LoadedAdapter
from octavo.loading.model import LoadedModel
from octavo.lora import AdapterRef, LoRARequest
from octavo.ops import LowRank
from octavo.parts.linear_layer import Linear
from octavo.parts.weight_adapter import AdapterOptions, WeightAdapter

RANK = 8


def random_adapter(ref: AdapterRef, loaded: LoadedModel, args: EngineArgs) -> LoadedAdapter:
    """In the place of `load_adapter` (adapter_loader.py): changes every Linear, by what `ref.name` decides."""
    generator = torch.Generator().manual_seed(sum(ref.name.encode()))
    options, changes = AdapterOptions(loaded.backend, torch.float32), {}
    for path, part in loaded.model.adapted_parts().items():
        if isinstance(part, Linear):
            a = torch.randn(RANK, part.inputs, generator=generator) / part.inputs**0.5
            b = torch.randn(part.outputs, RANK, generator=generator) / 8
            changes[path] = part.adapter_change(WeightAdapter([LowRank(0, a, b)]), options)
    model = loaded.model
    return LoadedAdapter(ref.name, changes, model.tokens.num_embeddings, model.vocab_size, only_tables=True)


def request(name: str, folder: Path) -> LoRARequest:
    """For such an adapter; there must be a file, which nobody reads."""
    path = folder / f"adapter-{name}"
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    return LoRARequest(name, 1 + sum(name.encode()), str(path))
