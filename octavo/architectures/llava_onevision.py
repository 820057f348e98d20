"""LLaVA-OneVision (Li et al. 2024): LLaVA-NeXT on SigLIP, with a bound on the grid; several pictures, and films."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from octavo.architectures.composite import with_tower
from octavo.architectures.llava import llava_tower
from octavo.architectures.llava_next import NEXT_NAMES, LlavaNextTower
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.media.anyres import shrunken_grid
from octavo.media.processors.llava_onevision import LlavaOnevisionProcessor
from octavo.parts import CausalLM, MediaData

DEFAULTS: dict[str, Any] = {
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
}


def resized(grids: Tensor, size: tuple[int, int]) -> Tensor:
    """Grids `[count, rows, columns, hidden_size]` of another size, bilinear."""
    by_channel = grids.permute(0, 3, 1, 2).float()
    return functional.interpolate(by_channel, size, mode="bilinear").permute(0, 2, 3, 1).to(grids.dtype)


class LlavaOnevisionTower(LlavaNextTower):
    """A lone picture's rows as in LLaVA-NeXT, one tile of each of several, and a film's frames at half their side.

    Args:
        most_tiles: a grid of more is made smaller.
        parts, hidden_size: as LlavaNextTower takes them.
    """

    def __init__(self, *parts: Any, hidden_size: int, most_tiles: int) -> None:
        super().__init__(*parts, hidden_size=hidden_size)
        self.most_tiles = most_tiles

    def rows(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        if kind == "image":
            return super().rows(kind, items)
        films = [item["pixel_values_videos"] for item in items]
        frames = iter(self.projected(self.features([frame for film in films for frame in film])))
        return [self.film(torch.stack([next(frames) for _ in film])) for film in films]

    def joined(self, item: MediaData, tiles: Sequence[Tensor]) -> Tensor:
        if len(tiles) == 1:
            return torch.cat([tiles[0], self.newline.unsqueeze(0)])
        return super().joined(item, tiles)

    def grid(self, item: MediaData, tiles: Sequence[Tensor]) -> Tensor:
        whole = super().grid(item, tiles)
        size = (whole.shape[0], whole.shape[1])
        smaller = shrunken_grid(size, self.tower.side, self.most_tiles)
        return whole if smaller == size else resized(whole.unsqueeze(0), smaller)[0]

    def film(self, frames: Tensor) -> Tensor:
        """Rows of a film, of its frames' `[frames, patches, hidden_size]`: one newline ends it."""
        side = self.tower.side
        half = math.ceil(side / 2)
        grids = frames[:, -side * side :].view(len(frames), side, side, -1)
        return torch.cat([resized(grids, (half, half)).flatten(0, 2), self.newline.unsqueeze(0)])


@architecture(
    "LlavaOnevisionForConditionalGeneration",
    about="LLaVA-OneVision",
    examples=("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    media=LlavaOnevisionProcessor,
    defaults=DEFAULTS,
)
def llava_onevision(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "qwen2")
    most_tiles = int(c.vision_aspect_ratio.rpartition("_")[2])
    tower = llava_tower(c, text, LlavaOnevisionTower, hidden_size=text.hidden_size, most_tiles=most_tiles)
    return with_tower(c, text, tower, NEXT_NAMES)
