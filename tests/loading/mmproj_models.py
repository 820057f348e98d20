"""Towers of golden cases written as llama.cpp's converters write them, beside their text models."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.golden import tensors
from tests.loading.gguf_models import write_gguf
from tests.loading.gguf_parts import permute

Array = np.ndarray
Config = dict[str, Any]


def write(
    path: Path, metadata: dict[str, Any], arrays: dict[str, Array], kind: gguf.GGMLQuantizationType | None = None
) -> Path:
    """A file of architecture clip. `metadata` without `clip.`; keys of None are left out. Matrices are of `kind`."""
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
        if kind is not None and value.ndim == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
        else:
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


IDEFICS3 = "model.text_model."
"""The only beginning in place of which the text's own names have another; its head has none."""


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
    if prefix == IDEFICS3:
        own = {f"model.{name}": w for name, w in own.items()} | {"lm_head.weight": tensors(case)["lm_head.weight"]}
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


# Those of today, convert_hf_to_gguf.py: its changes, and the gguf package's own names.


def _named(arrays: dict[str, Array]) -> dict[str, Array]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 8)
    found = {names.get_name(name, (".weight", ".bias")): value for name, value in arrays.items()}
    assert None not in found
    return found


def _vision(sizes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"has_vision_encoder": True, **{f"vision.{key}": value for key, value in sizes.items()}, **more}


def qwen2_vl(case: dict[str, Any], old: bool = False, **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """`old` is how files of the first converter, qwen2_vl_surgery.py, name the feed-forward's products."""
    vision = case["config"]["vision_config"]
    sizes = {
        "image_size": 560,
        "patch_size": vision["patch_size"],
        "embedding_length": vision["embed_dim"],
        "feed_forward_length": 0 if old else vision["hidden_size"],
        "block_count": vision["depth"],
        "attention.head_count": vision["num_heads"],
        "attention.layer_norm_epsilon": 1e-6,
        "image_min_pixels": preprocessor(case)["min_pixels"],
    }
    metadata = _vision(sizes, projector_type="qwen2vl_merger", **mean_and_std(case))
    arrays, patches = {}, dict[str, Array]()
    for name, value in tensors(case).items():
        if name == "visual.patch_embed.proj.weight":
            frames = value.reshape(len(value), 3, 2, vision["patch_size"], vision["patch_size"])
            patches = {"v.patch_embd.weight": frames[:, :, 0], "v.patch_embd.weight.1": frames[:, :, 1]}
        elif ".qkv." in name:
            parts = zip("qkv", np.split(value, 3), strict=True)
            arrays |= {name.replace("qkv", letter): part for letter, part in parts}
        elif name.startswith("visual."):
            arrays[name] = value
    named = _named(arrays)
    if old:
        other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        named = {".".join(other.get(part, part) for part in name.split(".")): value for name, value in named.items()}
    return {**metadata, **changed}, {**patches, **named}


def pixtral(case: dict[str, Any], **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    vision = case["config"]["vision_config"]
    sizes = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "attention.layer_norm_epsilon": 1e-5,
    }
    metadata = _vision(sizes, projector_type="pixtral", use_silu=True, **mean_and_std(case))
    arrays = {}
    for name, value in tensors(case).items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = permute(value, vision["head_dim"] // 2)
        if not name.startswith("language_model."):
            arrays[name] = value
    arrays["v.token_embd.img_break"] = tensors(case)["language_model.model.embed_tokens.weight"][12]
    return {**metadata, **changed}, _named(arrays)


def whisper(case: dict[str, Any], kind: str, **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    audio = case["config"]["audio_config"]
    sizes = {
        "num_mel_bins": audio["num_mel_bins"],
        "embedding_length": audio["d_model"],
        "feed_forward_length": audio["encoder_ffn_dim"],
        "block_count": audio["encoder_layers"],
        "attention.head_count": audio["encoder_attention_heads"],
        "attention.layer_norm_epsilon": 1e-5,
    }
    metadata = {"has_audio_encoder": True, **{f"audio.{key}": value for key, value in sizes.items()}}
    arrays = {}
    for name, value in tensors(case).items():
        if name.startswith("language_model."):
            continue
        if name.startswith("multi_modal_projector"):
            name = "audio." + name
        arrays[name] = value[:, None] if name.endswith(("conv1.bias", "conv2.bias")) else value
    return {**metadata, "projector_type": kind, **changed}, _named(arrays)


def idefics3(case: dict[str, Any], **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    vision = case["config"]["vision_config"]
    sizes = {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "attention.layer_norm_epsilon": 1e-5,
        "projector.scale_factor": case["config"]["scale_factor"],
        "preproc_image_size": preprocessor(case)["size"]["longest_edge"],
    }
    metadata = _vision(sizes, projector_type="idefics3", use_gelu=True, **mean_and_std(case))
    own = {n: w for n, w in tensors(case).items() if n.startswith(("model.vision_model.", "model.connector."))}
    return {**metadata, **changed}, _named(own)


# That of MiniCPM-V, minicpmv-convert-image-encoder-to-gguf.py.

_SIGLIP = {**_CLIP, "vpm.": "v.", "mlp.fc1": "ffn_down", "mlp.fc2": "ffn_up", "layernorm": "ln"}


def minicpmv(case: dict[str, Any], **changed: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    config, vision = case["config"], case["config"]["vision_config"]
    sizes = {
        "image_size": config["image_size"],
        "patch_size": vision["patch_size"],
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "attention.layer_norm_epsilon": 1e-6,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    metadata = _vision(sizes, projector_type="resampler", minicpmv_version=3, use_gelu=True)
    arrays = {"resampler.pos_embed_k": np.zeros((4, config["hidden_size"]), np.float32)}
    for name, value in tensors(case).items():
        if name.startswith("llm."):
            continue
        if name == "resampler.proj":
            name, value = "resampler.proj.weight", value.T
        for letter, part in zip("qkv", np.split(value, 3), strict=True) if "in_proj" in name else ():
            arrays[name.replace("in_proj_", f"{letter}.")] = part
        for published, stored in _SIGLIP.items():
            name = name.replace(published, stored)
        if "in_" not in name:
            arrays[name] = value
    return {**metadata, **changed}, arrays
