"""Rotary embeddings as configs describe them."""

import math
from collections.abc import Collection

import torch

from octavo.architectures.model_config import Config
from octavo.architectures.rope_settings import AXES, FULL, original_length, rope_settings
from octavo.errors import CheckpointError
from octavo.parts import AxialRotaryEmbedding, LongRotaryEmbedding, RotaryEmbedding
from octavo.parts.rotary_embedding import frequencies, llama3_frequencies, yarn_frequencies


def make_rope(
    c: Config,
    head_dim: int,
    *,
    layer: str = FULL,
    layers: Collection[str] = (),
    partial: bool = True,
    base: float | None = None,
    interleaved: bool = False,
) -> RotaryEmbedding:
    """The rotary embedding that config `c` describes for heads of `head_dim`.

    Args:
        layer, layers: the type of layers that it is for, and all types that the model has.
        partial: whether the config may say that only a fraction of the head is rotated.
        base: in place of the config's; for families that keep it somewhere else.
        interleaved: pairs are neighbours.

    Raises the errors of `rope_settings`.
    """
    settings = rope_settings(c, layer, layers)
    if base is None:
        base = float(settings.get("rope_theta") or c.first("rope_theta", default=10000.0))
    fraction = (
        settings.get("partial_rotary_factor") or c.first("partial_rotary_factor", default=1.0) if partial else 1.0
    )
    if settings.rope_type == "proportional":
        plain = frequencies(head_dim, base)
        plain[int(fraction * head_dim // 2) :] = 0.0
        return RotaryEmbedding(plain / settings.get("factor", 1.0), 1.0, interleaved)
    dim = int(head_dim * fraction)
    if not 0 < dim <= head_dim - head_dim % 2:
        raise CheckpointError(
            f"config.json: rope rotates pairs, and a share of {fraction:g} of a head of {head_dim} values is {dim}."
        )
    if settings.rope_type == "longrope":
        return _longrope(c, settings, dim, base, interleaved)
    table, scale = _table(c, settings, dim, base)
    if (sections := settings.get(AXES)) and not settings.get("mrope_interleaved"):
        if sum(sections) != len(table):
            raise CheckpointError(
                f"config.json: {settings.path}{AXES} has {sum(sections)} pairs, and a head has {len(table)}."
            )
        return AxialRotaryEmbedding(table, sections, scale, interleaved)
    return RotaryEmbedding(table, scale, interleaved)


def _table(c: Config, settings: Config, dim: int, base: float) -> tuple[torch.Tensor, float]:
    """Each pair's angle per position, and the factor of cos and sin."""
    kind = settings.rope_type
    if kind == "dynamic" and (alpha := settings.get("alpha")):  # acts at every length (Hunyuan)
        base *= alpha ** (dim / (dim - 2))
    plain = frequencies(dim, base)
    if kind == "linear":
        return plain / settings.factor, 1.0
    if kind == "llama3":
        low, high = settings.low_freq_factor, settings.high_freq_factor
        if low >= high:
            raise CheckpointError(f"config.json: {settings.path}high_freq_factor must be above low_freq_factor.")
        return llama3_frequencies(dim, base, settings.factor, low, high, original_length(c, settings)), 1.0
    if kind == "ntk":
        return frequencies(dim, base * settings.factor) / settings.factor ** (2 / dim), 1.0
    if kind == "yarn":
        return _yarn(c, settings, dim, base)
    if kind == "factors":
        return plain / _pairs(settings, "factors", dim), 1.0
    # Dynamic NTK leaves everything as it is up to max_position_embeddings, which is as far as a request may go.
    return plain, 1.0


def _pairs(settings: Config, key: str, dim: int) -> torch.Tensor:
    """A number for each pair."""
    factors = torch.tensor(getattr(settings, key), dtype=torch.float32, device="cpu")
    if len(factors) != (dim + 1) // 2:
        raise CheckpointError(
            f"config.json: {settings.path}{key} has {len(factors)} values, and a head has {(dim + 1) // 2} pairs."
        )
    return factors


def _yarn(c: Config, settings: Config, dim: int, base: float) -> tuple[torch.Tensor, float]:
    original = original_length(c, settings)
    factor = settings.get("factor") or c.max_position_embeddings / original

    def magnitude(scale: float, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0

    attention = settings.get("attention_factor")
    if attention is None:
        mscale, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
        attention = (
            magnitude(factor, mscale) / magnitude(factor, all_dims) if mscale and all_dims else magnitude(factor)
        )
    table = yarn_frequencies(
        dim,
        base,
        factor,
        original,
        settings.get("beta_fast", 32),
        settings.get("beta_slow", 1),
        settings.get("truncate", True),
    )
    return table, attention * settings.get("attn_factor", 1.0)


def _longrope(c: Config, settings: Config, dim: int, base: float, interleaved: bool) -> RotaryEmbedding:
    original = original_length(c, settings)
    factor = settings.get("factor") or c.max_position_embeddings / original
    common = settings.get("attention_factor")
    if common is None:
        common = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    # One division, as the reference has it: dividing twice rounds twice, which far positions multiply.
    steps = base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    short, long = (1.0 / (_pairs(settings, f"{name}_factor", dim) * steps) for name in ("short", "long"))
    short_scale, long_scale = (float(settings.get(f"{name}_mscale") or common) for name in ("short", "long"))
    return LongRotaryEmbedding(short, long, short_scale, long_scale, original, interleaved)
