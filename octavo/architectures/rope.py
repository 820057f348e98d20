"""Rotary embeddings as configs describe them: rope_theta with rope_scaling, or (transformers 5) rope_parameters."""

import math
from typing import Any

import torch

from octavo.architectures.config import Config
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import LongRotary, Rotary
from octavo.parts.rotary import frequencies, llama3_frequencies, yarn_frequencies


def rotary(c: Config, dim: int, *, default_base: float = 10000.0, interleaved: bool = False) -> Rotary:
    """The Rotary of `dim` turning values that config `c` describes."""
    scaling: dict[str, Any] = {**c.get("rope_scaling", {}), **c.get("rope_parameters", {})}
    base = float(scaling.get("rope_theta") or c.get("rope_theta", default_base))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rotary(frequencies(dim, base), interleaved=interleaved)
    if kind == "linear":
        return Rotary(frequencies(dim, base) / scaling["factor"], interleaved=interleaved)
    if kind == "dynamic":
        # Dynamic NTK leaves everything as it is up to max_position_embeddings, which is as far as a request may go.
        return Rotary(frequencies(dim, base), interleaved=interleaved)
    if kind == "llama3":
        table = llama3_frequencies(
            dim,
            base,
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        )
        return Rotary(table, interleaved=interleaved)
    if kind == "yarn":
        return _yarn(c, scaling, dim, base, interleaved)
    if kind in ("longrope", "su"):
        return _longrope(c, scaling, dim, base, interleaved)
    if kind == "factors":  # GGUF's rope_freqs tensor: what each pair's angle is divided by
        return Rotary(frequencies(dim, base) / torch.tensor(scaling["factors"], device="cpu"), interleaved=interleaved)
    raise UnsupportedModelError(
        f"rope_scaling type {kind!r} is not known; Octavo has default, linear, dynamic, llama3, yarn and longrope."
    )


def _yarn(c: Config, scaling: dict[str, Any], dim: int, base: float, interleaved: bool) -> Rotary:
    original = scaling.get("original_max_position_embeddings") or c.max_position_embeddings
    factor = scaling.get("factor") or c.max_position_embeddings / original

    def magnitude(scale: float, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = (
            magnitude(factor, mscale) / magnitude(factor, all_dims) if mscale and all_dims else magnitude(factor)
        )
    table = yarn_frequencies(
        dim,
        base,
        factor,
        original,
        scaling.get("beta_fast") or 32,
        scaling.get("beta_slow") or 1,
        scaling.get("truncate", True),
    )
    return Rotary(table, scale=attention, interleaved=interleaved)


def _longrope(c: Config, scaling: dict[str, Any], dim: int, base: float, interleaved: bool) -> Rotary:
    original = c.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    if original is None:
        raise CheckpointError("config.json: longrope needs original_max_position_embeddings. Is the file complete?")
    factor = c.max_position_embeddings / original
    common = scaling.get("attention_factor")
    if common is None:
        common = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    tables = []
    for name in ("short_factor", "long_factor"):
        factors = torch.tensor(scaling[name], device="cpu")
        if len(factors) != dim // 2:
            raise CheckpointError(f"config.json: {name} has {len(factors)} values, and a head turns {dim // 2} pairs.")
        tables.append(frequencies(dim, base) / factors)
    short, long = (float(scaling.get(name) or common) for name in ("short_mscale", "long_mscale"))
    return LongRotary(tables[0], tables[1], short, long, original, interleaved)


def position_limit(c: Config) -> int | None:
    """The longest sequence that the config allows, or None where it sets no bound (state-space models)."""
    limit = c.first("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    scaling: dict[str, Any] = {**c.get("rope_scaling", {}), **c.get("rope_parameters", {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    # These two write the length before scaling into max_position_embeddings.
    if limit is not None and kind in ("linear", "yarn") and "original_max_position_embeddings" not in scaling:
        limit = int(limit * scaling.get("factor", 1.0))
    return None if limit is None else int(limit)
