"""Qwen2.5-VL (Bai et al. 2025): Qwen2-VL whose patches see windows of the picture, and films' positions in seconds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.architectures.pixtral_config import axial_base
from octavo.architectures.qwen2_vl import NAMES as QWEN2_VL_NAMES
from octavo.architectures.qwen2_vl import SPELLINGS, TEXT, text_on_axes
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError
from octavo.media.processors.qwen2_vl import Qwen2_5VLProcessor
from octavo.parts import (
    MLP,
    CausalLM,
    EncoderAttention,
    EncoderLayers,
    GatedMLP,
    Grid,
    GridTower,
    Into,
    MediaData,
    PreNorm,
    RMSNorm,
    SpanBatch,
    frame_runs,
    together,
)

NAMES: dict[str, str | Into] = {
    **{name: path for name, path in QWEN2_VL_NAMES.items() if ".mlp.{fc1" not in name},
    "visual.blocks.{i}.mlp.{gate_proj|up_proj}": "media.encoder.layers.{i}.mlp.gate_up.{gate|up}",
    "visual.blocks.{i}.mlp.down_proj": "media.encoder.layers.{i}.mlp.down",
}
VISION: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
"""What the published config class takes for keys that are left out."""


class Qwen2_5VLTower(GridTower):
    """Patches that see those of their window, in some layers those of their pair of frames.

    Windows are squares of `window_size` pixels from the top left on; those at the right and at the bottom are what is
    left of the picture. Patches are computed in the order of windows.

    Args:
        c: the vision_config.
        hidden_size: of the text.
    """

    def __init__(self, c: Config, hidden_size: int) -> None:
        size, heads = c.hidden_size, c.num_heads
        values = c.in_channels * c.temporal_patch_size * c.patch_size**2
        super().__init__(values, size, size // heads, axial_base(c), c.spatial_merge_size)
        self.window = c.window_size // c.patch_size // self.merge
        if not self.window:
            raise CheckpointError(f"config.json: {c.path}window_size is less than the patches that make one row.")
        self.whole = set(c.fullatt_block_indexes)
        norm = partial(RMSNorm, size, 1e-6)

        def layer(i: int) -> PreNorm:
            attn = EncoderAttention(size, heads, bias=True)
            return PreNorm(norm, attn=attn, mlp=GatedMLP(size, c.intermediate_size, c.hidden_act, True))

        self.encoder, self.norm = EncoderLayers(layer, c.depth), norm()
        self.merger = MLP(self.merged, self.merged, "gelu", True, output_size=hidden_size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        patches, grids = self.read(kind, items)
        order, windows = self.windows(grids)
        angles = self.angles(grids)
        turned = self._in_order(angles[0], order), self._in_order(angles[1], order)
        of_window, of_frame = (SpanBatch(runs, angles=turned) for runs in (windows, frame_runs(grids)))
        x = self._in_order(torch.cat(patches), order)
        for i, layer in enumerate(self.encoder.layers):
            x = layer(x, of_frame if i in self.whole else of_window)
        rows = torch.empty_like(x).view(-1, self.merged)
        rows[order] = self.norm(x).view(-1, self.merged)
        return together(torch.split(rows, self.merged_counts(grids)), self.merger)

    def _in_order(self, x: Tensor, order: Tensor) -> Tensor:
        """Rows of patches `[patches, values]`, those that make one row together in the order of these."""
        return x.view(len(order), -1)[order].view(x.shape)

    def windows(self, grids: Sequence[Grid]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The rows of all items in the order of windows, int64; first patch and number of patches of each window."""
        order, runs, first = list[Tensor](), list[tuple[int, int]](), 0
        for frames, *sides in grids:
            rows, columns = (side // self.merge for side in sides)
            for _ in range(frames):
                number = torch.arange(first, first + rows * columns).view(rows, columns)
                first += rows * columns
                bands = torch.split(number, self.window)
                for window in (w for band in bands for w in torch.split(band, self.window, dim=1)):
                    runs.append((sum(map(len, order)) * self.merge**2, window.numel() * self.merge**2))
                    order.append(window.flatten())
        return torch.cat(order), runs


@architecture(
    "Qwen2_5_VLForConditionalGeneration",
    about="Qwen2.5-VL",
    examples=("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"),
    media=Qwen2_5VLProcessor,
    defaults={**TEXT, "vision_config": VISION},
    read_as="qwen2vl",
)
def qwen2_5_vl(c: Config) -> CausalLM:
    text = text_on_axes(c)
    model = text.with_media(Qwen2_5VLTower(c.section("vision_config"), text.hidden_size), NAMES)
    model.names = model.names.spelled(SPELLINGS)
    return model
