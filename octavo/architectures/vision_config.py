"""Vision towers of a composite: CLIP's and SigLIP's configs and published names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorHeader
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import (
    Into,
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


def mmproj_tower_names(file: ProjectorHeader, path: str = "media.tower") -> dict[str, str | Into]:
    """Where llama.cpp's tensors of a CLIP or SigLIP tower go.

    Files of its older converters call the feed-forward's first product ffn_down, and its second ffn_up.
    """
    layer = f"{path}.encoder.layers.{{i}}"
    down, norm = file.tensors.get("v.blk.0.ffn_down.weight"), file.tensors.get("v.blk.0.ln1.weight")
    swapped = down is not None and norm is not None and down.shape[-1:] == norm.shape
    return {
        "v.class_embd": parameter(f"{path}.class_token"),
        "v.patch_embd": Into(f"{path}.patches", flat_convolution),
        "v.position_embd.weight": parameter(f"{path}.positions"),
        "v.{pre_ln|post_ln}": f"{path}.{{first_norm|last_norm}}",
        "v.blk.{i}.{ln1|ln2}": f"{layer}.{{attn_norm|mlp_norm}}",
        "v.blk.{i}.attn_{q|k|v}": f"{layer}.attn.qkv.{{q|k|v}}",
        "v.blk.{i}.attn_out": f"{layer}.attn.o",
        "v.blk.{i}.ffn_{up|down}": f"{layer}.mlp.{'{down|up}' if swapped else '{up|down}'}",
    }
