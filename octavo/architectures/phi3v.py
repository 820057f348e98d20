"""Phi-3-Vision and Phi-3.5-Vision (Abdin et al. 2024): CLIP over crops, four patches a row, learned rows between."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.model_config import Config
from octavo.architectures.phi3 import phi3
from octavo.architectures.registry import architecture
from octavo.architectures.vision_config import tower_names, vision_tower
from octavo.errors import UnsupportedModelError
from octavo.media.processors.phi3v import Phi3VProcessor
from octavo.parts import (
    MLP,
    CausalLM,
    Into,
    MediaData,
    MediaTower,
    VisionTower,
    parameter,
    pixel_shuffle,
    together,
)

IMAGE = "model.vision_embed_tokens"
NAMES: dict[str, str | Into] = {
    **tower_names(f"{IMAGE}.img_processor.vision_model."),
    f"{IMAGE}.{{glb_GN|sub_GN}}": parameter("media.{between|newline}", lambda w: w.reshape(1, -1)),
    f"{IMAGE}.img_projection.{{0|2}}": "media.project.{up|down}",
}
CLIP_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""The tower's sizes, which the vendor's code fixes."""
ORDERS = ("sub_glb", "glb_sub")


class Phi3VTower(MediaTower):
    """A grid of crops with a learned row behind each of its lines, another such row, and the whole picture likewise."""

    def __init__(self, tower: VisionTower, hidden_size: int, crops_first: bool) -> None:
        super().__init__()
        merged = 4 * tower.output_size
        self.tower, self.crops_first = tower, crops_first
        self.between, self.newline = (nn.Parameter(torch.empty(1, merged), requires_grad=False) for _ in range(2))
        self.project = MLP(merged, hidden_size, "gelu", True, output_size=hidden_size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        tiles = [tile for item in items for tile in item["pixel_values"]]
        rows = iter([self._merged(x[1:]) for x in self.tower(tiles, self.dtype)])
        each = []
        for item in items:
            whole, *crops = [next(rows) for _ in item["pixel_values"]]
            side = item["pixel_values"].shape[-1]
            lines, columns = (int(length) // side for length in item["image_sizes"])
            parts = [self._lines(crops, lines, columns), self.between, self._lines([whole], 1, 1)]
            each.append(torch.cat(parts if self.crops_first else parts[::-1]))
        return together(each, self.project)

    @staticmethod
    def _merged(x: Tensor) -> Tensor:
        side = math.isqrt(len(x))
        return pixel_shuffle(x, (side, side), 0.5)

    def _lines(self, tiles: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """Tiles of a grid as one picture, line by line, each with the learned row behind it."""
        side, size = math.isqrt(len(tiles[0])), tiles[0].shape[1]
        grid = torch.stack(list(tiles)).view(rows, columns, side, side, size).transpose(1, 2)
        lines = grid.reshape(rows * side, columns * side, size)
        return torch.cat([lines, self.newline.expand(len(lines), 1, size)], dim=1).flatten(0, 1)


@architecture(
    "Phi3VForCausalLM",
    about="Phi-3-Vision, Phi-3.5-Vision, VLM2Vec",
    examples=("microsoft/Phi-3-vision-128k-instruct", "microsoft/Phi-3.5-vision-instruct", "TIGER-Lab/VLM2Vec-Full"),
    media=Phi3VProcessor,
    defaults={**defaults_of("Phi3ForCausalLM"), "embd_layer": {"hd_transform_order": "glb_sub"}},
)
def phi3v(c: Config) -> CausalLM:
    places = c.section("embd_layer")
    order = places.hd_transform_order
    if order not in ORDERS:
        raise UnsupportedModelError(f"config.json: hd_transform_order {order!r} is not one of {', '.join(ORDERS)}.")
    for key in ("use_hd_transform", "with_learnable_separator"):
        if not places.get(key, True):
            raise UnsupportedModelError(f"config.json: embd_layer's {key} is false, which is not supported.")
    text, processor = phi3(c), c.section("img_processor")
    vision = processor.section("vision_config")
    states = [processor.get("layer_idx", -2)]
    tower = vision_tower(vision.replace(**{**CLIP_336, **vision.values}), states=states)
    return text.with_media(Phi3VTower(tower, text.hidden_size, order == ORDERS[0]), NAMES)
