"""GLM-4V's eyes (GLM Team 2024): EVA2-CLIP, a convolution that makes one row of four, and a gated projector."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.ops import Backend
from octavo.parts import (
    MLP,
    BranchNorm,
    EncoderAttention,
    EncoderLayers,
    GatedMLP,
    Into,
    LayerNorm,
    Linear,
    MediaData,
    MediaTower,
    PatchEmbedding,
    SpanBatch,
    flat_convolution,
    parameter,
    together,
    unfold,
)

VISION, LAYER = "transformer.vision", "media.encoder.layers.{i}"
NAMES: dict[str, str | Into] = {
    f"{VISION}.{{boi|eoi}}": parameter("media.{begin|end}", lambda w: w.flatten(0, 1)),
    f"{VISION}.patch_embedding.cls_embedding": parameter("media.class_token"),
    f"{VISION}.patch_embedding.position_embedding.weight": parameter("media.positions"),
    f"{VISION}.patch_embedding.proj": Into("media.patches", flat_convolution),
    f"{VISION}.transformer.layers.{{i}}.attention.query_key_value": f"{LAYER}.attn.qkv",
    f"{VISION}.transformer.layers.{{i}}.attention.dense": f"{LAYER}.attn.o",
    f"{VISION}.transformer.layers.{{i}}.{{input|post_attention}}_layernorm": f"{LAYER}.{{attn|mlp}}_norm",
    f"{VISION}.transformer.layers.{{i}}.mlp.{{fc1|fc2}}": f"{LAYER}.mlp.{{up|down}}",
    f"{VISION}.conv": Into("media.merge", flat_convolution),
    f"{VISION}.linear_proj.linear_proj": "media.project",
    f"{VISION}.linear_proj.norm1": "media.norm",
    f"{VISION}.linear_proj.{{gate_proj|dense_h_to_4h}}": "media.mlp.gate_up.{gate|up}",
    f"{VISION}.linear_proj.dense_4h_to_h": "media.mlp.down",
}


class GLM4VTower(MediaTower):
    """A row for each square of two by two patches, between a learned one for the beginning and one for the end."""

    def __init__(self, vision: Config, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        size, num_heads, own = vision.hidden_size, vision.num_heads, vision.intermediate_size
        norm = partial(LayerNorm, size, vision.layer_norm_eps)
        self.divisor = vision.get("scaling_factor", 1)
        self.patches = PatchEmbedding(vision.patch_size, size, channels=vision.get("in_channels", 3))
        self.class_token = nn.Parameter(torch.empty(1, size), requires_grad=False)
        self.positions = nn.Parameter(torch.empty(vision.num_positions, size), requires_grad=False)
        self.encoder = EncoderLayers(
            lambda i: BranchNorm(
                norm,
                attn=EncoderAttention(size, num_heads, bias=True),
                mlp=MLP(size, own, vision.get("hidden_act", "gelu"), True),
            ),
            vision.num_hidden_layers,
        )
        self.merge = Linear(4 * size, hidden_size, True)
        self.project = Linear(hidden_size, hidden_size)
        self.norm = LayerNorm(hidden_size, 1e-5)
        self.mlp = GatedMLP(hidden_size, intermediate_size, "silu")
        self.begin, self.end = (nn.Parameter(torch.empty(1, hidden_size), requires_grad=False) for _ in range(2))

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        pictures = self.patches.of([item["images"] for item in items], self.dtype)
        rows = [torch.cat([self.class_token, patches]) + self.positions for patches in pictures]
        squares = [self._squares(each[1:]) for each in together(rows, self.encoder)]
        return [torch.cat([self.begin, each, self.end]) / self.divisor for each in together(squares, self._projected)]

    def _squares(self, rows: Tensor) -> Tensor:
        """Two by two neighbours of a square grid `[rows, size]` as one: `[rows / 4, 4 * size]`."""
        side = math.isqrt(len(rows))
        return unfold(rows.t().view(-1, side, side), 2)

    def _projected(self, x: Tensor, batch: SpanBatch) -> Tensor:
        x = self.norm(self.project(self.merge(x, batch), batch))
        return self.mlp(self._activate(x, "gelu"), batch)  # type: ignore[no-any-return]
