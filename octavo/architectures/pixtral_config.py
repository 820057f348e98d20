"""Pixtral's vision tower of a composite, as transformers' format describes it; rope by row and column."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorHeader
from octavo.architectures.rope_settings import rope_settings
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import Into, PixtralTower, flat_convolution, parameter

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


def pixtral_mmproj_names(file: ProjectorHeader, path: str = "media.tower") -> dict[str, str | Into]:
    """Where llama.cpp's tensors of Pixtral's tower go. Heads of q and k have their pairs side by side there."""
    vision, here = file.vision_config(), f"{path}.encoder.layers.{{i}}"
    pairs = vision["hidden_size"] // vision["num_attention_heads"] // 2

    def halves(weight: Tensor) -> Tensor:
        return weight.view(-1, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)

    return {
        "v.patch_embd": Into(f"{path}.patches", flat_convolution),
        "v.pre_ln": f"{path}.first_norm",
        "v.blk.{i}.{ln1|ln2}": f"{here}.{{attn|mlp}}_norm",
        "v.blk.{i}.attn_{q|k}": Into(f"{here}.attn.qkv.{{q|k}}", halves),
        "v.blk.{i}.attn_v": f"{here}.attn.qkv.v",
        "v.blk.{i}.attn_out": f"{here}.attn.o",
        "v.blk.{i}.ffn_{gate|up}": f"{here}.mlp.gate_up.{{gate|up}}",
        "v.blk.{i}.ffn_down": f"{here}.mlp.down",
        # A row of the text model's table, which is there as well.
        "v.token_embd.img_break": parameter(f"{path}.unused"),
    }


def pixtral_mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    """What a file of Pixtral's tower says, as config.json of the whole model has it."""
    token = file.token("[IMG]")
    return {
        "vision_config": {"model_type": PIXTRAL, **file.vision_config()},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": "mm.1.bias" in file.tensors,
        **({} if token is None else {"image_token_index": token}),
    }
