"""Rotary positions of models whose layers rotate differently by type."""

from collections.abc import Collection, Mapping
from typing import Any

from octavo.architectures.model_config import Config
from octavo.architectures.rope_settings import FULL, PLAIN, SLIDING


def rope_by_layer(c: Config, types: Collection[str], local_base: float | None = None) -> Config:
    """`c` with an entry of rope_parameters for each type of layer, of a family that scales full layers alone (Olmo 3).

    What the config says of the whole model counts for the full layers. Sliding ones rotate plainly, unless
    rope_parameters has an entry for them.

    Args:
        types: those of the model's layers, FULL or SLIDING.
        local_base: the base of sliding layers where the config has none for them; the model's if None.
    """
    parameters: Mapping[str, Any] = c.get("rope_parameters", {})
    scaling: Mapping[str, Any] = c.get("rope_scaling", {})
    is_nested = FULL in parameters or SLIDING in parameters
    entries = parameters if is_nested else {FULL: parameters}
    base = local_base or (None if is_nested else parameters.get("rope_theta"))
    of_type = {
        FULL: {**PLAIN, **(entries.get(FULL) or {}), **scaling},
        SLIDING: {**PLAIN, "rope_theta": base, **(entries.get(SLIDING) or {})},
    }
    return c.replace(rope_parameters={kind: of_type[kind] for kind in types}, rope_scaling=None)
