"""LLaVA-1.5 (Liu et al. 2024): a picture's patches from CLIP or SigLIP, two layers to the size of the text's."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from octavo.architectures.composite import with_tower
from octavo.architectures.model_config import Config
from octavo.architectures.pixtral_config import (
    PIXTRAL,
    pixtral_mmproj_config,
    pixtral_mmproj_names,
    pixtral_names,
    pixtral_tower,
)
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.architectures.vision_config import mmproj_tower_names, tower_names, vision_tower
from octavo.media.processor import Processor
from octavo.media.processors.llava import LlavaProcessor
from octavo.media.processors.pixtral import PixtralProcessor
from octavo.parts import MLP, CausalLM, Into, MediaData, MediaTower, ProjectedPixtral, VisionTower, together

CLIP_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
DEFAULTS: dict[str, Any] = {
    "vision_config": CLIP_336,
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
NAMES = {**tower_names(), **pixtral_names(), "multi_modal_projector.{linear_1|linear_2}": "media.project.{up|down}"}


class LlavaTower(MediaTower):
    """Projected rows of pictures' patches.

    Args:
        tower: gives the hidden states of patches.
        project: brings them to the size of the text's rows.
        drop_first: whether the first row of each picture goes, which is CLIP's class token.
        scale: factor of all rows: the text's, which scales whatever stands in a prompt (Gemma).
    """

    def __init__(self, tower: VisionTower, project: nn.Module, drop_first: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.tower, self.project = tower, project
        self.drop_first, self.scale = drop_first, scale

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        rows = self.rows(kind, items)
        return rows if self.scale == 1.0 else [each * self.scale for each in rows]

    def rows(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        """Of each item, before the scale."""
        return self.projected(self.features([item["pixel_values"] for item in items]))

    def features(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """The chosen hidden states of each picture `[channels, height, width]`."""
        return [rows[1:] if self.drop_first else rows for rows in self.tower(pictures, self.dtype)]

    def projected(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each picture's features at the size of the text's rows."""
        return together(features, self.project)


def llava_tower(c: Config, text: CausalLM, make: Callable[..., LlavaTower], **options: Any) -> LlavaTower:
    """The tower that a config of LLaVA's kind describes, as `make(tower, project, drop_first, scale, **options)`."""
    layers = c.vision_feature_layer
    tower = vision_tower(c.section("vision_config"), states=[layers] if isinstance(layers, int) else layers)
    size, bias = text.hidden_size, c.multimodal_projector_bias
    project = MLP(tower.output_size, size, c.projector_hidden_act, bias, output_size=size)
    drop_first = c.vision_feature_select_strategy == "default"
    return make(tower, project, drop_first, text.tokens.scale, **options)


def mmproj_names(file: ProjectorHeader) -> dict[str, str | Into]:
    """Where the tensors of a file of CLIP's tower go."""
    return {**mmproj_tower_names(file), "mm.{0|2}": "media.project.{up|down}"}


def mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    """What such a file says, as config.json has it. The converter leaves out layers above those that are used."""
    # Texts of before transformers' own format have no token for pictures.
    token = file.token("<image>") or file.spare_token()
    return {
        "vision_config": {"model_type": "clip_vision_model", **file.vision_config()},
        "vision_feature_layer": file.numbers("vision.feature_layer", 16) or -1,
        "vision_feature_select_strategy": "default",
        **({} if token is None else {"image_token_index": token}),
    }


def mmproj_preprocessor(file: ProjectorHeader) -> dict[str, Any]:
    """Pictures are squares of the tower's size."""
    side = file.vision_config()["image_size"]
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def is_mmproj(file: ProjectorHeader, newline: bool = False) -> bool:
    """Whether such a file is of CLIP's tower, and has LLaVA-NeXT's newline or has not."""
    return "v.class_embd" in file.tensors and ("model.image_newline" in file.tensors) is newline


def processor(c: Config) -> type[Processor]:
    """What makes features of pictures for the tower that the config has."""
    return PixtralProcessor if c.section("vision_config").get("model_type") == PIXTRAL else LlavaProcessor


@architecture(
    "LlavaForConditionalGeneration",
    about="LLaVA-1.5, LLaVA-Interleave, Pixtral",
    examples=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-interleave-qwen-7b-hf", "mistral-community/pixtral-12b"),
    media=processor,
    defaults=DEFAULTS,
    mmproj=(
        ProjectorFormat("mlp", mmproj_config, mmproj_names, when=is_mmproj, preprocessor=mmproj_preprocessor),
        ProjectorFormat(
            "pixtral",
            pixtral_mmproj_config,
            lambda file: {**pixtral_mmproj_names(file), "mm.{1|2}": "media.project.{up|down}"},
            # Mistral 3.1's, of which several patches make a row, is another model.
            when=lambda file: "mm.patch_merger.weight" not in file.tensors,
        ),
    ),
)
def llava(c: Config) -> CausalLM:
    text, vision = text_model(c.section("text_config"), "llama"), c.section("vision_config")
    if vision.get("model_type") != PIXTRAL:
        return with_tower(c, text, llava_tower(c, text, LlavaTower), NAMES)
    layers = c.vision_feature_layer
    size, tower = text.hidden_size, pixtral_tower(vision, [layers] if isinstance(layers, int) else layers)
    project = MLP(tower.output_size, size, c.projector_hidden_act, c.multimodal_projector_bias, output_size=size)
    return with_tower(c, text, ProjectedPixtral(tower, project), NAMES)
