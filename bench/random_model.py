"""Models of any size with random weights, written as published checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.architectures import Config, find_architecture
from octavo.loading.precision import Precision
from octavo.loading.weights import WeightLoader
from octavo.ops import choose_kernels
from octavo.ops.weights import Q4_1


def write_random_model(config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A folder with `config` and random tensors for all that its architecture wants."""
    with torch.device("meta"):
        model = find_architecture(config["architectures"]).build(Config(config))
    loader = WeightLoader(model, Precision(dtype, dtype, dtype), choose_kernels(torch.device("cpu"), "torch"))
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


def write_random_gguf(folder: Path, path: Path, tokenizer_of: Path) -> Path:
    """The Llama-shaped checkpoint in `folder` as a Q4_1 GGUF file, with the tokenizer of another GGUF file.

    Values are as random as before, so that queries and keys are not put in GGUF's order.
    """
    import gguf
    from safetensors import safe_open

    kernels = choose_kernels(torch.device("cpu"))
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    for field in gguf.GGUFReader(tokenizer_of).fields.values():
        if field.name.startswith("tokenizer."):
            of_items = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of_items)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
            value, stored = tensors.get_tensor(name).float(), names.get_name(name, try_suffixes=(".weight",))
            if value.dim() == 1:
                writer.add_tensor(stored, value.numpy())
            else:
                rows = kernels.quantize(value, Q4_1).data.numpy()
                writer.add_tensor(stored, rows, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
