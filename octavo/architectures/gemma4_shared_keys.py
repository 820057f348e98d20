"""Which layers of Gemma 3n and 4 read the keys and values of earlier ones."""

from collections.abc import Sequence
from typing import Any

from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError


def shared_keys(c: Config, types: Sequence[str]) -> list[dict[str, Any]]:
    """Of each layer, what SharedAttention is told of its keys and values: the last layers read those of earlier ones.

    Raises CheckpointError where no layer of a kind has any.
    """
    first = len(types) - c.get("num_kv_shared_layers", 0)
    last = {kind: i for i, kind in enumerate(types[: max(first, 0)])} if first < len(types) else {}
    if lacking := set(types[max(first, 0) :]) - set(last):
        raise CheckpointError(f"config.json: num_kv_shared_layers leaves no layer of {min(lacking)} with keys.")
    return [
        {"name": kind, "reads": i >= first} if i >= first or last.get(kind) == i else {} for i, kind in enumerate(types)
    ]


def unread_keys(shares: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Tensors that layers without keys of their own may be stored with."""
    reading = [i for i, share in enumerate(shares) if share.get("reads")]
    return tuple(f"model.layers.{i}.self_attn.{n}.*" for i in reading for n in ("k_proj", "v_proj", "k_norm", "v_norm"))
