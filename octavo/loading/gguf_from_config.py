"""From a config to a GGUF file's metadata: what octavo.loading.gguf_config reads, the other way round."""

from typing import Any

import torch
from torch import Tensor

from octavo.architectures import Config
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import LAYER_TYPES, original_length, rope_settings
from octavo.loading.gguf_config import KEYS
from octavo.parts.rotary_embedding import frequencies

FLOATS = frozenset(
    (
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.clamp_kqv", "logit_scale"),
        *("attn_logit_softcapping", "final_logit_softcapping", "expert_weights_scale"),
    )
)
"""Keys whose values are floats, whatever config.json writes."""


def header_values(c: Config, format: GGUFFormat) -> dict[str, Any]:
    """Metadata of the file's architecture, by keys without its name; floats where llama.cpp wants floats."""
    values: dict[str, Any] = {"block_count": int(c.first("num_hidden_layers", "n_layer", "num_layers"))}
    for key, names in KEYS.items():
        if (value := c.first(*names)) is not None:
            values[key] = float(value) if key in FLOATS else value
    if c.get("use_sliding_window") is False:
        values.pop("attention.sliding_window", None)
    heads = values.get("attention.head_count", 0)
    values.setdefault("attention.head_count_kv", heads)
    head_dim = values.get("attention.key_length") or (values["embedding_length"] // heads if heads else 0)
    if "attention.key_length" in values:
        values["attention.value_length"] = head_dim
    if heads:
        values |= _rope_values(c, head_dim)
    return {key: value for key, value in {**values, **format.header(c)}.items() if value is not None}


def _rope_values(c: Config, head_dim: int) -> dict[str, Any]:
    settings = rope_settings(c, layers=LAYER_TYPES)
    fraction = settings.get("partial_rotary_factor") or c.first("partial_rotary_factor", default=1.0)
    values: dict[str, Any] = {
        "rope.dimension_count": int(head_dim * fraction),
        "rope.freq_base": _base(c, settings),
    }
    kind = settings.rope_type
    if kind in ("linear", "yarn", "longrope"):
        values["rope.scaling.type"] = kind
    if kind in ("linear", "yarn"):
        factor = settings.get("factor") or c.max_position_embeddings / original_length(c, settings)
        values["rope.scaling.factor"] = float(factor)
    if kind in ("yarn", "longrope"):
        values["rope.scaling.original_context_length"] = original_length(c, settings)
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow"):
            values[f"rope.scaling.yarn_{name}"] = float(settings.get(name, {"beta_fast": 32, "beta_slow": 1}[name]))
        if (magnitude := settings.get("attention_factor")) is not None:
            values["rope.scaling.yarn_attn_factor"] = float(magnitude)
    return values


def rope_tensors(c: Config) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors that say how positions are stretched, and metadata that belongs to them."""
    settings = rope_settings(c, layers=LAYER_TYPES)
    if settings.rope_type not in ("longrope", "llama3"):
        return {}, {}
    table = make_rope(c, c.get("head_dim", c.hidden_size // c.num_attention_heads)).table
    if settings.rope_type == "longrope":
        factors = {name: torch.tensor(getattr(settings, f"{name}_factor")).float() for name in ("short", "long")}
        tensors = {f"rope_factors_{name}.weight": values for name, values in factors.items()}
        return tensors, {"rope.scaling.attn_factor": float(table.scales[0])}
    plain = frequencies(2 * table.frequencies.shape[1], _base(c, settings))
    return {"rope_freqs.weight": plain / table.frequencies[0]}, {}


def _base(c: Config, settings: Config) -> float:
    return float(settings.get("rope_theta") or c.first("rope_theta", default=10000.0))
