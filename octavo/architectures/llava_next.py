"""LLaVA-NeXT (Liu et al. 2024), also e5-v: a picture whole and in tiles, whose rows a newline closes; and for films."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.architectures.composite import with_tower
from octavo.architectures.llava import (
    DEFAULTS,
    NAMES,
    LlavaTower,
    is_mmproj,
    llava_tower,
    mmproj_config,
    mmproj_names,
    mmproj_preprocessor,
)
from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.media.anyres import unpadded_grid
from octavo.media.processors.llava_next import LlavaNextProcessor, LlavaNextVideoProcessor
from octavo.parts import CausalLM, MediaData, parameter

NEXT_NAMES = {**NAMES, "image_newline": parameter("media.newline")}
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Tiles of the published models, rows and columns."""


class LlavaNextTower(LlavaTower):
    """Rows of the whole picture, then those of its tiles as one grid, without what is padding.

    Args:
        hidden_size: of the text's rows.
        parts: as LlavaTower takes them.
    """

    def __init__(self, *parts: Any, hidden_size: int) -> None:
        super().__init__(*parts)
        self.newline = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def rows(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        tiles = iter(self.projected(self.features([tile for item in items for tile in item["pixel_values"]])))
        return [self.joined(item, [next(tiles) for _ in item["pixel_values"]]) for item in items]

    def joined(self, item: MediaData, tiles: Sequence[Tensor]) -> Tensor:
        """A picture's rows, of those of it as a whole and of its tiles."""
        return torch.cat([tiles[0], self.closed(self.grid(item, tiles[1:]))])

    def grid(self, item: MediaData, tiles: Sequence[Tensor]) -> Tensor:
        """Tiles beside and below each other, `[rows, columns, hidden_size]`, without what is padding."""
        side, (down, across) = self.tower.side, item["tile_grid"].tolist()
        patches = torch.stack([tile[-side * side :] for tile in tiles]).view(down, across, side, side, -1)
        whole = patches.transpose(1, 2).reshape(down * side, across * side, -1)
        height, width = item["image_sizes"].tolist()
        rows, columns = unpadded_grid((height, width), (down * side, across * side))
        top, left = (down * side - rows) // 2, (across * side - columns) // 2
        return whole[top : top + rows, left : left + columns]

    def closed(self, grid: Tensor) -> Tensor:
        """Rows of a grid, one after the other, each with a newline behind it."""
        return torch.cat([grid, self.newline.expand(len(grid), 1, -1)], dim=1).flatten(0, 1)


class LlavaNextVideoTower(LlavaTower):
    """Rows of a film's frames, whose patches are pooled before they are projected.

    Args:
        mode: average or max.
        stride: patches along the edge of a square that is pooled.
        parts: as LlavaTower takes them.
    """

    def __init__(self, *parts: Any, mode: str, stride: int) -> None:
        super().__init__(*parts)
        self.pool, self.stride = functional.avg_pool2d if mode == "average" else functional.max_pool2d, stride

    def rows(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        films = [item["pixel_values_videos"] for item in items]
        frames = iter(self.features([frame for film in films for frame in film]))
        return self.projected([self.pooled(torch.stack([next(frames) for _ in film])) for film in films])

    def pooled(self, frames: Tensor) -> Tensor:
        """A film's pooled rows of its frames' `[frames, patches, size]`."""
        side = self.tower.side
        grids = frames[:, -side * side :].view(len(frames), side, side, -1).permute(0, 3, 1, 2)
        pooled = self.pool(grids.float(), self.stride)
        return pooled.permute(0, 2, 3, 1).flatten(0, 2).to(frames.dtype)


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    config, flat = mmproj_config(file), file.numbers("vision.image_grid_pinpoints", 128)
    side = config["vision_config"]["image_size"]
    pairs = [flat[i : i + 2] for i in range(0, len(flat), 2)] if flat else [[h * side, w * side] for h, w in GRIDS]
    return {**config, "image_grid_pinpoints": pairs}


MMPROJ = ProjectorFormat(
    "mlp",
    _mmproj_config,
    lambda file: {**mmproj_names(file), "model.image_newline": parameter("media.newline")},
    when=partial(is_mmproj, newline=True),
    preprocessor=mmproj_preprocessor,
)


@architecture(
    "LlavaNextForConditionalGeneration",
    about="LLaVA-NeXT, e5-v",
    examples=("llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf", "royokong/e5-v"),
    media=LlavaNextProcessor,
    defaults=DEFAULTS,
    mmproj=(MMPROJ,),
)
def llava_next(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "llama")
    return with_tower(c, text, llava_tower(c, text, LlavaNextTower, hidden_size=text.hidden_size), NEXT_NAMES)


@architecture(
    "LlavaNextVideoForConditionalGeneration",
    about="LLaVA-NeXT-Video",
    examples=("llava-hf/LLaVA-NeXT-Video-7B-hf",),
    media=LlavaNextVideoProcessor,
    defaults={**DEFAULTS, "spatial_pool_mode": "average", "spatial_pool_stride": 2},
)
def llava_next_video(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "llama")
    pooling = {"mode": c.spatial_pool_mode, "stride": c.spatial_pool_stride}
    return with_tower(c, text, llava_tower(c, text, LlavaNextVideoTower, **pooling), NEXT_NAMES)
