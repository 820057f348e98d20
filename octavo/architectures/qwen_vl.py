"""Qwen-VL's eyes (Bai et al. 2023): an OpenCLIP tower, whose rows a resampler's queries read."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.ops import Backend
from octavo.parts import (
    MLP,
    EncoderAttention,
    EncoderLayers,
    Into,
    LayerNorm,
    MediaData,
    MediaTower,
    PatchEmbedding,
    PreNorm,
    Resampler,
    flat_convolution,
    grouped_qkv,
    parameter,
    resampler_names,
    resized_positions,
    together,
)

VISION, LAYER = "transformer.visual", "media.encoder.layers.{i}"
BLOCK = f"{VISION}.transformer.resblocks.{{i}}"
POSITIONS = 256
"""Of the tower, whatever its grid: 16 by 16."""
QUERY_HEAD = 128
"""Values of each of the resampler's heads."""


def names(visual: Config) -> dict[str, str | Into]:
    """Where the tower's published tensors go."""
    return {
        f"{VISION}.conv1": Into("media.patches", flat_convolution),
        f"{VISION}.positional_embedding": parameter("media.positions"),
        f"{VISION}.ln_pre": "media.norm",
        f"{BLOCK}.ln_{{1|2}}": f"{LAYER}.{{attn|mlp}}_norm",
        f"{BLOCK}.attn.in_proj": grouped_qkv(f"{LAYER}.attn.qkv", visual.heads, 1, visual.width // visual.heads),
        f"{BLOCK}.attn.out_proj": f"{LAYER}.attn.o",
        f"{BLOCK}.mlp.{{c_fc|c_proj}}": f"{LAYER}.mlp.{{up|down}}",
        f"{VISION}.attn_pool.pos_embed": parameter("media.query_positions"),
        **resampler_names(f"{VISION}.attn_pool", "media.resampler"),
        f"{VISION}.ln_post": "media.resampler.norm",
        f"{VISION}.proj": parameter("media.resampler.out.weight", Tensor.t),
    }


class QwenVLTower(MediaTower):
    """As many rows for each picture as the resampler has queries."""

    def __init__(self, visual: Config) -> None:
        super().__init__()
        size, num_heads, output = visual.width, visual.heads, visual.output_dim
        norm = partial(LayerNorm, size, 1e-6)
        inner, num_queries = int(size * visual.get("mlp_ratio", 4.0)), visual.get("n_queries", 256)
        self.grid = visual.image_size // visual.patch_size
        self.patches = PatchEmbedding(visual.patch_size, size, bias=False)
        self.positions = nn.Parameter(torch.empty(POSITIONS, size), requires_grad=False)
        self.norm = norm()
        self.encoder = EncoderLayers(
            lambda i: PreNorm(
                norm, attn=EncoderAttention(size, num_heads, bias=True), mlp=MLP(size, inner, "gelu", True)
            ),
            visual.layers,
        )
        self.query_positions = nn.Parameter(torch.empty(num_queries, output), requires_grad=False)
        self.resampler = Resampler(num_queries, output, output // QUERY_HEAD, size)

    def prepare(self, backend: Backend) -> None:
        """All pictures have one grid: its positions are made once."""
        grid = (self.grid, self.grid)
        self.positions.data = resized_positions(self.positions.data, grid)
        self._key_positions = resized_positions(self.query_positions.data, grid)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        pictures = self.patches.of([item["pixel_values"] for item in items], self.dtype)
        rows = together([self.norm(patches + self.positions) for patches in pictures], self.encoder)
        return self.resampler(rows, [self._key_positions] * len(rows), self.query_positions)  # type: ignore[no-any-return]
