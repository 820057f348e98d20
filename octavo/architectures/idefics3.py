"""Idefics3 (Laurencon et al. 2024): a SigLIP tower over tiles, neighbours made one row, one linear map, and Llama."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.architectures.vision_config import mmproj_tower_names, tower_names, vision_sizes
from octavo.media.processors.idefics3 import Idefics3Processor
from octavo.parts import (
    CausalLM,
    Into,
    Linear,
    MediaData,
    MediaTower,
    VisionTower,
    bucketed_positions,
    pixel_shuffle,
    siglip_tower,
    together,
)

NAMES: dict[str, str | Into] = {
    **tower_names("model.vision_model."),
    "model.connector.modality_projection.proj": "media.project",
}
VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


class Idefics3Tower(MediaTower):
    """Rows of all of a picture's tiles, one after the other.

    Args:
        tower: gives rows of a tile's patches.
        merge: patches along the side of the square that becomes a row.
        hidden_size: of the text.
    """

    def __init__(self, tower: VisionTower, merge: int, hidden_size: int) -> None:
        super().__init__()
        self.tower, self.merge = tower, merge
        self.project = Linear(tower.output_size * merge**2, hidden_size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        tiles = [tile for item in items for tile in item["pixel_values"]]
        places = [self._places(tile) for tile in tiles]
        rows = iter([self._merged(x) for x in self.tower(tiles, self.dtype, places)])
        return together([torch.cat([next(rows) for _ in item["pixel_values"]]) for item in items], self.project)

    def _places(self, tile: Tensor) -> Tensor:
        """Where in the table of positions each patch of a tile is, `[patches]`."""
        rows, columns = (length // self.tower.patches.patch_size for length in tile.shape[1:])
        numbers = torch.arange(len(self.tower.positions), device=tile.device).unsqueeze(1)
        return bucketed_positions(numbers, (rows, columns)).squeeze(1)

    def _merged(self, x: Tensor) -> Tensor:
        side = math.isqrt(len(x))
        return pixel_shuffle(x, (side, side), 1 / self.merge)


def _published(name: str) -> str:
    """A tensor of the text model as the whole checkpoint calls it."""
    return f"model.text_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _mmproj_names(file: ProjectorHeader) -> dict[str, str | Into]:
    return {**mmproj_tower_names(file), "mm.model.fc": "media.project"}


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    token, vision = file.token("<image>"), file.vision_config()
    # The converter writes an epsilon of its own where the config has none, and no name for this approximation.
    own = {key: VISION[key] for key in ("hidden_act", "layer_norm_eps")}
    return {
        "vision_config": {**vision, **own},
        "scale_factor": file.integer("vision.projector.scale_factor", 1, 64) or 2,
        **({} if token is None else {"image_token_id": token}),
    }


def _mmproj_preprocessor(file: ProjectorHeader) -> dict[str, Any]:
    """Pictures are as long as four tiles where the file does not say, as published."""
    longest = file.integer("vision.preproc_image_size", 1, 1 << 14)
    return {"size": {"longest_edge": longest or 4 * file.vision_config()["image_size"]}}


@architecture(
    "Idefics3ForConditionalGeneration",
    about="Idefics3, SmolVLM",
    examples=("HuggingFaceM4/Idefics3-8B-Llama3", "HuggingFaceTB/SmolVLM-Instruct"),
    media=Idefics3Processor,
    defaults={"vision_config": VISION, "scale_factor": 2, "tie_word_embeddings": False},
    mmproj=(
        ProjectorFormat("idefics3", _mmproj_config, _mmproj_names, text=_published, preprocessor=_mmproj_preprocessor),
    ),
)
def idefics3(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "llama")
    text.tied, text.tied_if_absent = c.tie_word_embeddings, True
    tower = siglip_tower(vision_sizes(c.section("vision_config")), last_norm=True)
    text.names = text.names.renamed("model.", "model.text_model.")
    return text.with_media(Idefics3Tower(tower, c.scale_factor, text.hidden_size), NAMES)
