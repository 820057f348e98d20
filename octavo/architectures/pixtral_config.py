"""Pixtral's vision tower of a composite, as transformers' format describes it; rope by row and column."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.architectures.model_config import Config
from octavo.architectures.rope_settings import rope_settings
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import Into, PixtralTower, flat_convolution

PIXTRAL = "pixtral"
PIXTRAL_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 16,
    "hidden_act": "gelu",
}


def axial_base(c: Config) -> float:
    """The base of a tower's rope by row and column, which transformers 5 gives a rope_type of its own.

    Raises UnsupportedModelError for another type.
    """
    parameters: Mapping[str, Any] = c.get("rope_parameters", {})
    if parameters.get("rope_type") == "axial":
        c = c.replace(rope_parameters={**parameters, "rope_type": "default"})
    settings = rope_settings(c)
    if settings.rope_type != "default":
        raise UnsupportedModelError(f"config.json: {c.path}rope_parameters: a tower's rope is axial, of one base.")
    return float(settings.get("rope_theta") or c.first("rope_theta", default=10000.0))


def pixtral_tower(c: Config, states: Sequence[int] = (-1,)) -> PixtralTower:
    """Pixtral's tower as a section describes it, up to the hidden states that vision_feature_layer chooses."""
    assumed, c = c.assumed, Config(c.values, PIXTRAL_DEFAULTS, c.path)
    c.assumed = assumed
    layers = c.num_hidden_layers
    counts = [state + layers + 1 if state < 0 else state for state in states]
    if not counts or not all(0 <= count <= layers for count in counts):
        raise CheckpointError(
            f"config.json: vision_feature_layer is {list(states)}, and the tower has {layers} layers."
        )
    return PixtralTower(
        c.hidden_size,
        c.intermediate_size,
        counts,
        c.num_attention_heads,
        c.get("head_dim", c.hidden_size // c.num_attention_heads),
        c.patch_size,
        base=axial_base(c),
        activation=c.hidden_act,
        interleaved=False,
        channels=c.num_channels,
    )


def pixtral_names(published: str = "vision_tower.", path: str = "media.tower") -> dict[str, str | Into]:
    """Where the tensors of Pixtral's tower go."""
    layer, here = f"{published}transformer.layers.{{i}}", f"{path}.encoder.layers.{{i}}"
    return {
        f"{published}patch_conv": Into(f"{path}.patches", flat_convolution),
        f"{published}ln_pre": f"{path}.first_norm",
        f"{layer}.{{attention|ffn}}_norm": f"{here}.{{attn|mlp}}_norm",
        f"{layer}.attention.{{q|k|v}}_proj": f"{here}.attn.qkv.{{q|k|v}}",
        f"{layer}.attention.o_proj": f"{here}.attn.o",
        f"{layer}.feed_forward.{{gate|up}}_proj": f"{here}.mlp.gate_up.{{gate|up}}",
        f"{layer}.feed_forward.down_proj": f"{here}.mlp.down",
    }
