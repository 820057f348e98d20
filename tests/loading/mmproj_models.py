"""Towers of golden cases written as llama.cpp's converters write them, beside their text models."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.golden import tensors
from tests.loading.gguf_models import write_gguf

Array = np.ndarray
Config = dict[str, Any]


def write(path: Path, metadata: dict[str, Any], arrays: dict[str, Array]) -> Path:
    """A file of architecture clip. `metadata` without `clip.`; keys of None are left out."""
    writer = gguf.GGUFWriter(path, "clip")
    for key, value in metadata.items():
        key = f"clip.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_string(key, value)
    for name, value in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens_of(case: dict[str, Any], rows: int) -> dict[str, gguf.TokenType]:
    """The vocabulary of a case's tokenizer, filled up to `rows` as the converter does."""
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    tokenizer = json.loads(case["files"]["tokenizer.json"])
    by_id = {i: (text, normal) for text, i in tokenizer["model"]["vocab"].items()}
    by_id |= {each["id"]: (each["content"], control) for each in tokenizer["added_tokens"]}
    return dict(by_id.get(i, (f"[PAD{i}]", unused)) for i in range(rows))


def write_text(
    case: dict[str, Any],
    row: str,
    path: Path,
    section: str = "text_config",
    prefix: str = "language_model.",
    skip: tuple[str, ...] = (),
) -> Path:
    """The text model of a composite's case; `skip` are beginnings of its other tensors, where `prefix` is not all."""
    config: Config = {**case["config"], **case["config"].get(section, {})}
    own = {n.removeprefix(prefix): w for n, w in tensors(case).items() if n.startswith(prefix)}
    arrays = {name: w for name, w in own.items() if not (skip and name.startswith(skip))}
    rows = next(
        w.shape[0] for name, w in arrays.items() if name.endswith(("embed_tokens.weight", "tok_embeddings.weight"))
    )
    return write_gguf({"row": row, "config": config}, path, arrays=arrays, tokens=tokens_of(case, rows))


def preprocessor(case: dict[str, Any]) -> dict[str, Any]:
    return json.loads(case["files"].get("preprocessor_config.json", "{}"))


def mean_and_std(case: dict[str, Any]) -> dict[str, Any]:
    said = preprocessor(case)
    return {f"vision.{key}": said[key] for key in ("image_mean", "image_std") if key in said}


# The converter of LLaVA, tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py.

_CLIP = {
    "vision_tower.vision_model.": "v.",
    "multi_modal_projector.linear_1": "mm.0",
    "multi_modal_projector.linear_2": "mm.2",
    "image_newline": "model.image_newline",
    "encoder.layers": "blk",
    "embeddings.": "",
    "_proj": "",
    "self_attn.": "attn_",
    "layer_norm": "ln",
    "layrnorm": "ln",
    "embedding": "embd",
}


def llava(case: dict[str, Any], swapped: bool = True, **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata and tensors of a case with CLIP's tower, whose last layer goes. `swapped` is how old files name fc1."""
    config, vision = case["config"], case["config"]["vision_config"]
    layers = vision["num_hidden_layers"] + config["vision_feature_layer"] + 1
    first, second = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    metadata = {
        "projector_type": "mlp",
        "has_llava_projector": True,
        "vision.image_size": vision["image_size"],
        "vision.patch_size": vision["patch_size"],
        "vision.embedding_length": vision["hidden_size"],
        "vision.feed_forward_length": vision["intermediate_size"],
        "vision.attention.head_count": vision["num_attention_heads"],
        "vision.attention.layer_norm_epsilon": 1e-5,
        "vision.block_count": layers,
        "use_gelu": False,
        **mean_and_std(case),
    }
    if "image_grid_pinpoints" in config:
        metadata["vision.image_grid_pinpoints"] = [edge for pair in config["image_grid_pinpoints"] for edge in pair]
    arrays = {}
    for name, value in tensors(case).items():
        if name.startswith("language_model.") or "post_layernorm" in name or name.endswith("position_ids"):
            continue
        for published, stored in {**_CLIP, "mlp.fc1": first, "mlp.fc2": second}.items():
            name = name.replace(published, stored)
        if not name.startswith("v.blk.") or int(name.split(".")[2]) < layers:
            arrays[name] = value.squeeze()
    return {**metadata, **changed}, arrays
