"""What DeepSeek-V4's config says of its layers, in the published spelling and in transformers'."""

from collections.abc import Mapping
from typing import Any

from octavo.architectures.model_config import Config
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import PLAIN, SLIDING
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import RotaryEmbedding

COMPRESSED, HEAVILY = "compressed_sparse_attention", "heavily_compressed_attention"
TYPES = {0: SLIDING, 4: COMPRESSED, 128: HEAVILY}
"""Of layers, by the ratios that published configs give them."""
HASHED, ROUTED = "hash_moe", "moe"


def attention_ratios(c: Config) -> list[tuple[str, int]]:
    """Each layer's type, and how many tokens its entries are of; 0 for a window alone."""
    count, rates = c.num_hidden_layers, {kind: ratio for ratio, kind in TYPES.items()}
    stated: Mapping[str, Any] = c.get("compress_rates", {})
    for kind, key in ((COMPRESSED, "compress_rate_csa"), (HEAVILY, "compress_rate_hca")):
        rate = c.get(key, stated.get(kind, rates[kind]))
        if not isinstance(rate, int) or not 0 < rate <= c.max_position_embeddings:
            raise CheckpointError(
                f"config.json: compress_rates.{kind} must be a number of tokens, and is {rate!r:.60}."
            )
        rates[kind] = rate
    ratios = c.get("compress_ratios")
    if ratios is not None and (unknown := set(ratios) - set(TYPES)):
        raise UnsupportedModelError(f"config.json: compress_ratios has {min(unknown)}; this model has 0, 4 and 128.")
    default = [HEAVILY if i < 2 or i % 2 == 0 else COMPRESSED for i in range(count)]
    types = c.get("layer_types", default if ratios is None else [TYPES[ratio] for ratio in ratios])
    return [(kind, rates[kind]) for kind in _checked("layer_types", types, rates, count)]


def feed_forward_types(c: Config) -> list[str]:
    """Each layer's: HASHED or ROUTED."""
    count, hashed = c.num_hidden_layers, c.get("num_hash_layers", 3)
    default = [HASHED if i < hashed else ROUTED for i in range(count)]
    return _checked("mlp_layer_types", c.get("mlp_layer_types", default), (HASHED, ROUTED), count)


def _checked(key: str, types: list[str], known: Any, count: int) -> list[str]:
    """The types of the model's layers; more may follow, of layers that predict further tokens."""
    if len(types) < count:
        raise CheckpointError(f"config.json: {key} has {len(types)} types for {count} layers.")
    if unknown := set(types[:count]) - set(known):
        raise UnsupportedModelError(
            f"config.json: {key} has {min(unknown)[:60]!r}; this model's layers are {', '.join(known)}."
        )
    return types[:count]


def ropes(c: Config) -> tuple[RotaryEmbedding, RotaryEmbedding]:
    """For layers of windows alone, and for those with entries, which what the config says of scaling is for.

    YaRN's factor of cos and sin is 1 where the config has none.
    """
    share = c.get("partial_rotary_factor") or c.get("qk_rope_head_dim", c.head_dim // 8) / c.head_dim
    parameters: Mapping[str, Any] = c.get("rope_parameters", {})
    entries = dict(parameters)
    if not all(isinstance(entries.get(name), dict) for name in ("main", "compress")):
        flat: dict[str, Any] = {**parameters, **c.get("rope_scaling", {})}
        if flat.get("rope_type", flat.get("type")) == "yarn":
            flat.setdefault("attention_factor", 1.0)
        base = {"rope_theta": c.compress_rope_theta}
        entries = {
            "main": {**PLAIN, "rope_theta": c.first("rope_theta", default=10000.0)},
            "compress": {**PLAIN, **flat, **base},
        }
        if "type" in flat and "rope_type" not in flat:
            entries["compress"]["rope_type"] = flat["type"]
    own = c.replace(rope_parameters=entries, rope_scaling=None)
    main, compressed = (
        make_rope(own, int(c.head_dim * share), layer=name, layers=entries, partial=False, interleaved=True)
        for name in ("main", "compress")
    )
    return main, compressed
