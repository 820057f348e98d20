"""From a GGUF file's metadata to the keys of config.json that most architectures share."""

import math
from typing import Any

from octavo.architectures.gguf_format import has
from octavo.architectures.rope_settings import FULL, SLIDING
from octavo.errors import UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_limits import check_sizes
from octavo.loading.gguf_reader import shown
from octavo.loading.gguf_source import gguf_source
from octavo.loading.gguf_vocab import token_id

KEYS: dict[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_group_count": ("n_group", "num_expert_group"),
    "expert_group_used_count": ("topk_group",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "leading_dense_block_count": ("first_k_dense_replace",),
}
"""Metadata of a file's architecture to the names that published configs have for it."""


def _rope_dims(file: GGUFFile) -> tuple[int | None, int]:
    """How many values of a head rope rotates, None where there are none, and the values of a head."""
    heads = file.value("attention.head_count", 0)
    heads = max(heads) if isinstance(heads, list) else heads
    head_dim = file.value("attention.key_length") or file.value("embedding_length", 0) // max(1, heads)
    return file.value("rope.dimension_count", head_dim) if heads else None, head_dim


def _rotary_fraction(file: GGUFFile) -> float | None:
    """The fraction of a head that rope rotates: all of it where the file does not say."""
    rope_dim, head_dim = _rope_dims(file)
    if not rope_dim or not head_dim:
        return None
    fraction = rope_dim / head_dim
    return fraction if int(head_dim * fraction) == rope_dim else math.nextafter(fraction, math.inf)


def shared_config(file: GGUFFile) -> dict[str, Any]:
    """The config.json keys that most architectures share, from the metadata.

    Raises CheckpointError for values that no model has, or that the file's tensors contradict.
    """
    check_sizes(file.metadata, file.arch, file.tensors)
    value, config = file.value, dict[str, Any]()
    for key, names in KEYS.items():
        config |= dict.fromkeys(names, value(key))
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = value("attention.head_count")
    vocabulary, rows = file.vocabulary, file.rows_of_tokens
    config |= dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), file.layers)
    config |= {
        "num_nextn_predict_layers": value("nextn_predict_layers", 0),
        "attention_bias": has(file, "attn_output.bias"),
        "partial_rotary_factor": _rotary_fraction(file),
        "layer_types": layer_types(file),
        "rope_theta": value("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": rows,
        "bos_token_id": vocabulary.special.get("bos") if vocabulary else token_id(file.metadata, "bos", rows),
        "eos_token_id": sorted(vocabulary.ends) if vocabulary else token_id(file.metadata, "eos", rows),
    }
    return {k: v for k, v in config.items() if v is not None} | {"sliding_window": config["sliding_window"]}


def layer_types(file: GGUFFile) -> list[str] | None:
    """Which layers have a window, where the file says it: of each, or by a number, each so manieth not."""
    slides = file.value("attention.sliding_window_pattern")
    if slides is None:
        return None
    if isinstance(slides, int):
        slides = [slides == 0 or (i + 1) % slides != 0 for i in range(file.layers)]
    return [SLIDING if each else FULL for each in slides[: file.layers]]


def _rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    """The config's rope_scaling. Files before 2024 have `rope.scale_linear`, and scaling without a type is linear."""
    value = file.value
    factor = value("rope.scaling.factor") or value("rope.scale_linear") or 1.0
    kind = value("rope.scaling.type", "linear")
    magnitude = value("rope.scaling.attn_factor", 1.0)
    if {"rope_factors_long.weight", "rope_factors_short.weight"} & file.tensors.keys() or kind == "longrope":
        return {
            "rope_type": "longrope",
            "short_factor": _factors(file, "rope_factors_short.weight"),
            "long_factor": _factors(file, "rope_factors_long.weight"),
            "attention_factor": magnitude,
            "original_max_position_embeddings": value("rope.scaling.original_context_length", value("context_length")),
        }
    if kind == "yarn":
        return _yarn(file, factor, magnitude)
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{file.path}: rope.scaling.type {shown(kind)} is unknown; none, linear, yarn and longrope are read."
        )
    if magnitude != 1.0:
        raise UnsupportedModelError(f"{file.path}: rope.scaling.attn_factor with {kind} scaling is not supported.")
    if kind == "none":
        factor = 1.0
    if "rope_freqs.weight" in file.tensors:
        return {"rope_type": "factors", "factors": [f * factor for f in _factors(file, "rope_freqs.weight")]}
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(file: GGUFFile, factor: float, magnitude: float) -> dict[str, Any] | None:
    value = file.value
    if "rope_freqs.weight" in file.tensors or value("rope.scaling.yarn_ext_factor", 1.0) not in (-1.0, 1.0):
        raise UnsupportedModelError(f"{file.path}: yarn with rope_freqs or a yarn_ext_factor is not supported.")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": value("rope.scaling.original_context_length", value("context_length")),
    }
    for key in ("beta_fast", "beta_slow"):
        if (beta := value(f"rope.scaling.yarn_{key}")) is not None:
            scaling[key] = beta
    if value("rope.scaling.yarn_log_multiplier"):
        pass  # DeepSeek's: its families make a magnitude of it
    elif (whole := value("rope.scaling.yarn_attn_factor")) is not None:
        scaling["attention_factor"] = whole  # what the converter copies from config.json
    elif magnitude != 1.0:
        # llama.cpp multiplies YaRN's own magnitude with it.
        scaling["attention_factor"] = magnitude * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return scaling


def _factors(file: GGUFFile, name: str) -> list[float]:
    """What each pair's angle is divided by."""
    rope_dim, head_dim = _rope_dims(file)
    pairs = (rope_dim or head_dim) // 2
    tensor = file.tensors.get(name)
    if tensor is None:
        file.metadata.fail(f"tensor {name} is missing, which its long contexts need")
    if tensor.shape != (pairs,):
        file.metadata.fail(f"tensor {name} has the shape {list(tensor.shape)}, and a head rotates {pairs} pairs")
    factors: list[float] = gguf_source(file, name).read().tolist()
    if not all(math.isfinite(f) and f > 0 for f in factors):
        file.metadata.fail(f"tensor {name} has factors that are no positive numbers")
    return factors
