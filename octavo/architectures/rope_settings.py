"""What a config says of rotary positions, in every spelling that it has had, and how far they reach.

The base is rope_theta, rotary_emb_base or rope_embedding_base; the fraction of a head that is rotated is
partial_rotary_factor, rotary_pct and others (config_spellings.py has them all); how they are stretched stands in
rope_scaling. transformers 5 writes all three into rope_parameters, one for the model or one for each type of layer.
"""

from collections.abc import Collection, Mapping
from typing import Any

from octavo.architectures.config_kinds import MAX_LENGTH
from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.token_windows import Chunk, Window

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LAYER_TYPES = (FULL, SLIDING, CHUNKED, "linear_attention", "compressed_sparse_attention")
BESIDE_SCALING = {"rope_theta", "partial_rotary_factor"}
OF_EVERY_KIND = {"rope_type", "mrope_interleaved", *BESIDE_SCALING}
AXES = "mrope_section"
PLAIN = {"rope_type": "default"}
KEYS_OF: dict[str, set[str]] = {
    "default": {AXES},
    "ntk": {"factor"},  # of one factor at every length (GTE)
    "linear": {AXES, "factor", "original_max_position_embeddings"},
    "dynamic": {
        *(AXES, "factor", "original_max_position_embeddings", "alpha"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),  # which Hunyuan's files have, and nothing reads
    },
    "llama3": {AXES, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("factor", "original_max_position_embeddings", "attention_factor", "attn_factor", "mscale", "mscale_all_dim"),
        *("beta_fast", "beta_slow", "truncate", "finetuned", AXES, "llama_4_scaling_beta", "max_position_embeddings"),
    },
    "longrope": {
        *("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
        *("short_mscale", "long_mscale"),
    },
    "proportional": {"factor"},  # the first pairs of a whole head's turn, the others stand still (Gemma 4)
    "factors": {"factors"},  # GGUF's rope_freqs tensor: what each pair's angle is divided by
}
"""Kinds of scaling, and what is read of each beside OF_EVERY_KIND."""


def layer_type(window: Window | None) -> str:
    """The name by which rope_parameters and layer_types call a layer with that window."""
    return CHUNKED if isinstance(window, Chunk) else SLIDING if window else FULL


def layer_types(c: Config, default: list[str], known: Collection[str] = (FULL, SLIDING)) -> list[str]:
    """Each layer's type: layer_types, or `default`. Raises CheckpointError where they are not the layers'.

    Args:
        known: the types that layers may have. Raises UnsupportedModelError for another.
    """
    types: list[str] = c.get("layer_types", default)
    if len(types) != len(default):
        raise CheckpointError(f"config.json: layer_types has {len(types)} types for {len(default)} layers.")
    if unknown := set(types) - set(known):
        raise UnsupportedModelError(
            f"config.json: layer_types has {min(unknown)[:60]!r}; this model's layers are {' or '.join(known)}."
        )
    return types


def rope_settings(c: Config, layer: str = FULL, layers: Collection[str] = ()) -> Config:
    """What the config says of rotary in layers of type `layer`: rope_scaling's keys, else rope_parameters'.

    It always has a rope_type, one of KEYS_OF. rope_scaling counts for all of rope_parameters, as transformers has it;
    but the base and the share of rope_parameters stay where nothing else states them.

    Args:
        layers: all types of layers that the model has; `layer` alone if empty.

    Raises CheckpointError for a key that nothing reads, for layers that the model lacks or that are left out, and for a
    missing or wrong value; UnsupportedModelError for an unknown type.
    """
    known, values, path = {layer, *layers}, dict[str, Any](), "rope_scaling"
    for key in ("rope_parameters", "rope_scaling"):
        found: Mapping[str, Any] = c.get(key, {})
        if any(isinstance(value, dict) or name in LAYER_TYPES for name, value in found.items()):
            found = _of_layer(c, key, layer, known)
        if found:  # the later spelling replaces the other, except for what it may leave to it
            kept = {k: v for k, v in values.items() if k in BESIDE_SCALING and c.stated(k) is None}
            named = {"rope_type": found["type"]} if found.get("type") and not found.get("rope_type") else {}
            values = {**kept, **{k: v for k, v in found.items() if v is not None and k != "type"}, **named}
            path = key
    settings = Config(values, path=path + ".")
    kind = settings.get("rope_type", "default")
    if kind == "su" or (kind == "yarn" and "long_factor" in values):  # as Phi-3's first configs call longrope
        kind = "longrope"
    if kind == "mrope":  # as Qwen2-VL's first configs call it
        kind = "default"
    if kind not in KEYS_OF:
        raise UnsupportedModelError(
            f"config.json: {path} has the rope_type {kind[:60]!r}, which is unknown; Octavo has "
            f"{', '.join(k for k in KEYS_OF if k != 'factors')}."
        )
    if unread := sorted(set(values) - OF_EVERY_KIND - KEYS_OF[kind]):
        raise CheckpointError(
            f"config.json: {path}.{unread[0][:60]} means nothing to a rope_type of {kind!r}. It would be left out of "
            f"the answers: take it out of the file, or with hf_overrides, if that is what you want."
        )
    return settings.replace(rope_type=kind)


def _of_layer(c: Config, key: str, layer: str, known: set[str]) -> Mapping[str, Any]:
    """The entry of a dictionary that has one for each type of layer."""
    entries: Mapping[str, Any] = c.get(key, {})
    if lacking := sorted(str(name) for name, v in entries.items() if name not in known and v is not None):
        raise CheckpointError(
            f"config.json: {key}.{lacking[0][:60]} is for no layer of this model, whose layers are of type "
            f"{', '.join(sorted(known))}."
        )
    entry = entries.get(layer)
    if not isinstance(entry, dict):
        raise CheckpointError(f"config.json: {key} says nothing of {layer}, which this model has layers of.")
    return entry


def original_length(c: Config, settings: Config) -> int:
    """The length that the model was trained for before its positions were stretched."""
    key = "original_max_position_embeddings"
    return int(c.stated(key) or settings.get(key) or c.get(key) or c.max_position_embeddings)


def position_limit(c: Config) -> int | None:
    """The longest sequence that the config allows, or None where it sets no bound (state-space models).

    Linear scaling stretches max_position_embeddings by its factor, where it is of all layers.
    YaRN stretches original_max_position_embeddings,
    and some write the result into max_position_embeddings (DeepSeek), while others leave the old one there (Qwen2.5's
    documented recipe). The other kinds count in the final length, and dynamic is the reference's own only up to it.
    """
    # Qwen's and ChatGLM's seq_length is how far their own code goes without stretching.
    names = ("seq_length", "max_position_embeddings", "model_max_length", "max_sequence_length")
    limit = c.first(*names)
    if limit is None:
        return None
    dictionaries: list[dict[str, Any]] = [c.get(key, {}) for key in ("rope_scaling", "rope_parameters")]
    if c.get("rope_local_base_freq") is not None:  # sliding layers are not stretched (Gemma 3)
        return min(int(limit), MAX_LENGTH)
    nested = {name for found in dictionaries for name, value in found.items() if isinstance(value, dict)}
    lengths = (_stretched(c, rope_settings(c, layer, nested), limit) for layer in nested or {FULL})
    return min(int(min(lengths)), MAX_LENGTH)


def _stretched(c: Config, settings: Config, limit: int) -> float:
    """How far positions reach under one type of scaling, where max_position_embeddings is `limit`."""
    kind, factor = settings.rope_type, settings.get("factor", 1.0)
    if kind not in ("linear", "yarn"):
        return limit
    key = "original_max_position_embeddings"
    original = (c.stated(key) if kind == "yarn" else None) or settings.get(key) or limit
    return max(limit, original * factor)
