"""Vision towers of a composite: CLIP's and SigLIP's configs and published names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.architectures.model_config import Config
from octavo.architectures.rope_settings import rope_settings
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import (
    Into,
    PixtralTower,
    VisionSizes,
    VisionTower,
    clip_tower,
    flat_convolution,
    parameter,
    siglip_tower,
)

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
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
TOWERS: dict[str, tuple[Callable[..., VisionTower], Mapping[str, Any]]] = {
    "clip_vision_model": (
        clip_tower,
        {**_DEFAULTS, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    "siglip_vision_model": (
        siglip_tower,
        {**_DEFAULTS, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    ),
}
"""By model_type: what makes one, and what its config class takes for keys that are left out."""


def vision_tower(
    c: Config, usual: str = "clip_vision_model", states: Sequence[int] = (-1,), last_norm: bool = False
) -> VisionTower:
    """The tower that a section describes.

    Args:
        c: `config.section("vision_config")`. What it leaves out is as the tower's own config class has it.
        usual: the model_type of one that does not say.
        states: whose hidden states to give, as vision_feature_layer counts.
        last_norm: whether they are normed.

    Raises UnsupportedModelError for another kind of tower, CheckpointError for states that it does not have.
    """
    kind = c.get("model_type", usual)
    if kind not in TOWERS:
        raise UnsupportedModelError(
            f"config.json: {c.path}model_type is {kind[:60]!r}; here a tower is one of {', '.join(TOWERS)}."
        )
    make, defaults = TOWERS[kind]
    vision = Config(c.values, defaults, c.path)
    vision.assumed = c.assumed
    vision.check_sizes()
    try:
        return make(vision_sizes(vision), states, last_norm)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}.") from error


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


def vision_sizes(c: Config) -> VisionSizes:
    """The sizes that a tower's section states."""
    return VisionSizes(
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_layers=c.num_hidden_layers,
        num_heads=c.num_attention_heads,
        image_size=c.image_size,
        patch_size=c.patch_size,
        activation=c.hidden_act,
        eps=c.layer_norm_eps,
        channels=c.num_channels,
    )


def tower_names(published: str = "vision_tower.vision_model.", path: str = "media.tower") -> dict[str, str | Into]:
    """Where the tensors of a CLIP or SigLIP tower go.

    Args:
        published: how their names begin; what ends in `vision_model.` may also be published without that.
        path: of the VisionTower.
    """
    bare = published.removesuffix("vision_model.")
    names: dict[str, str | Into] = {}
    for begin in dict.fromkeys((published, bare)):
        layer = f"{begin}encoder.layers.{{i}}"
        names |= {
            f"{begin}embeddings.class_embedding": parameter(f"{path}.class_token"),
            f"{begin}embeddings.patch_embedding": Into(f"{path}.patches", flat_convolution),
            f"{begin}embeddings.position_embedding.weight": parameter(f"{path}.positions"),
            f"{begin}pre_layrnorm": f"{path}.first_norm",
            f"{layer}.layer_norm{{1|2}}": f"{path}.encoder.layers.{{i}}.{{attn_norm|mlp_norm}}",
            f"{layer}.self_attn.{{q|k|v}}_proj": f"{path}.encoder.layers.{{i}}.attn.qkv.{{q|k|v}}",
            f"{layer}.self_attn.out_proj": f"{path}.encoder.layers.{{i}}.attn.o",
            f"{layer}.mlp.{{fc1|fc2}}": f"{path}.encoder.layers.{{i}}.mlp.{{up|down}}",
            f"{begin}post_layernorm": f"{path}.last_norm",
            # What the towers' own uses need, and hidden states do not.
            f"{begin}embeddings.position_ids": parameter(f"{path}.unused"),
            f"{begin}head.{{probe|attention.in_proj_weight|attention.in_proj_bias}}": parameter(f"{path}.unused"),
            f"{begin}head.{{attention.out_proj|layernorm|mlp.fc1|mlp.fc2}}": f"{path}.unused",
        }
    return names
