"""Molmo (Deitke et al. 2024): CLIP over overlapping crops, whose patches are pooled and added to tokens."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.architectures.decoder import attention, decoder
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
from octavo.media.processors.molmo import MolmoProcessor
from octavo.parts import (
    BranchNorm,
    CausalLM,
    Clip,
    Embedding,
    GatedMLP,
    Into,
    MediaData,
    MediaTower,
    Names,
    PreNorm,
    QKNorm,
    QKTransform,
    QueryAttention,
    QueryBatch,
    RMSNorm,
    VisionSizes,
    clip_tower,
    gate_second,
    parameter,
    together,
)
from octavo.parts.weight_slots import WeightSlot

MORE_EMBEDDINGS = 128
"""Rows that the token table has beyond the vocabulary, which pictures' marks are among."""
STATES = (-2, -9)
"""Of the tower, whose hidden states lie side by side."""
POOL = 2
"""Patches along the side of the square that is pooled."""
BLOCK, LAYER = "model.transformer.blocks.{i}", "layers.{i}"
VIT, TOWER = "model.vision_backbone.image_vit", "media.tower"
RES, HERE = f"{VIT}.transformer.resblocks.{{i}}", f"{TOWER}.encoder.layers.{{i}}"


NAMES = Names(
    {
        "model.transformer.wte.{embedding|new_embedding}": parameter("embed.{own|more}.weight"),
        "model.transformer.ln_f": "norm",
        "model.transformer.ff_out": "head",
        f"{BLOCK}.att_proj": f"{LAYER}.attn.qkv",
        f"{BLOCK}.{{q|k}}_norm": f"{LAYER}.attn.qk_transform.{{q|k}}",
        f"{BLOCK}.attn_out": f"{LAYER}.attn.o",
        f"{BLOCK}.{{attn|ff}}_norm": f"{LAYER}.{{attn|mlp}}_norm",
        f"{BLOCK}.ff_proj": gate_second(f"{LAYER}.mlp.gate_up"),
        f"{BLOCK}.ff_out": f"{LAYER}.mlp.down",
    }
)
MEDIA_NAMES: dict[str, str | Into] = {
    "model.vision_backbone.pad_embed": parameter("media.padding"),
    f"{VIT}.{{class_embedding|positional_embedding}}": parameter(f"{TOWER}.{{class_token|positions}}"),
    f"{VIT}.patch_embedding": f"{TOWER}.patches",
    f"{VIT}.pre_ln": f"{TOWER}.first_norm",
    f"{RES}.attention.{{wq|wk|wv}}": f"{HERE}.attn.qkv.{{q|k|v}}",
    f"{RES}.attention.wo": f"{HERE}.attn.o",
    f"{RES}.{{attention|ffn}}_norm": f"{HERE}.{{attn|mlp}}_norm",
    f"{RES}.feed_forward.{{w1|w2}}": f"{HERE}.mlp.{{up|down}}",
    "model.vision_backbone.image_pooling_2d.{wq|wk|wv}": "media.pool.inputs.{0|1|2}",
    "model.vision_backbone.image_pooling_2d.wo": "media.pool.o",
    "model.vision_backbone.image_projector.{w1|w3}": "media.project.gate_up.{gate|up}",
    "model.vision_backbone.image_projector.w2": "media.project.down",
}
VISION: dict[str, Any] = {
    "image_default_input_size": [336, 336],
    "image_patch_size": 14,
    "image_emb_dim": 1024,
    "image_num_heads": 16,
    "image_num_layers": 23,
    "image_mlp_dim": 4096,
    "image_mlp_activations": "quick_gelu",
    "image_norm_eps": 1e-5,
}
"""What the vendor's code fixes."""
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "layer_norm_type": "default",
    "norm_after": False,
    "attention_layer_norm": False,
    "qkv_bias": False,
    "rope_theta": 10000.0,
    "weight_tying": False,
    "vision_backbone": VISION,
}


class TwoTables(Embedding):
    """A table that is published as two: the vocabulary's, and that of marks which are never written."""

    def weight_slots(self) -> dict[str, WeightSlot]:
        slots = super().weight_slots()
        slots["weight"].segments = {"own": self.num_embeddings - MORE_EMBEDDINGS, "more": MORE_EMBEDDINGS}
        return slots


class MolmoTower(MediaTower):
    """Pooled patches of all crops, in the order in which the prompt takes them.

    Args:
        c: the vision_backbone.
        hidden_size, intermediate_size: of the text, and of the projector.
    """

    adds = True

    def __init__(self, c: Config, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        size = c.image_emb_dim
        sizes = VisionSizes(
            hidden_size=size,
            intermediate_size=c.image_mlp_dim,
            num_layers=c.image_num_layers,
            num_heads=c.image_num_heads,
            image_size=c.image_default_input_size[0],
            patch_size=c.image_patch_size,
            activation=c.image_mlp_activations,
            eps=c.image_norm_eps,
        )
        self.tower = clip_tower(sizes, STATES)
        self.padding = nn.Parameter(torch.empty(2, self.tower.output_size), requires_grad=False)
        self.pool = QueryAttention(size, c.image_num_heads, self.tower.output_size, query_size=self.tower.output_size)
        self.project = GatedMLP(size, intermediate_size, "silu", output_size=hidden_size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        crops = [crop.to(self.dtype) for item in items for crop in item["images"]]
        masks = [mask for item in items for mask in item["image_masks"]]
        rows = self.tower.of_patches(together(crops, self.tower.patches))
        windows = [self._windows(x[1:], mask) for x, mask in zip(rows, masks, strict=True)]
        pooled = iter(torch.split(self._pool(torch.cat(windows)), [len(w) for w in windows]))
        each = [torch.cat([next(pooled) for _ in item["images"]])[item["patch_order"]] for item in items]
        return together(each, self.project)

    def _windows(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[windows, 4, size]` of a crop's patches, those that are padding marked as such."""
        empty = mask == 0
        partly = (mask < 1) & ~empty
        x = x + self.padding[0] * empty.unsqueeze(1) + self.padding[1] * partly.unsqueeze(1)
        side, size = math.isqrt(len(x)), x.shape[1]
        grid = functional.pad(x.view(side, side, size), (0, 0, 0, side % POOL, 0, side % POOL))
        count = grid.shape[0] // POOL
        return grid.view(count, POOL, count, POOL, size).transpose(1, 2).reshape(-1, POOL * POOL, size)

    def _pool(self, windows: Tensor) -> Tensor:
        """Each window's mean attends to its patches: `[windows, image_emb_dim]`."""
        count, each, _ = windows.shape
        keys = windows.flatten(0, 1)
        runs, key_runs = [(i, 1) for i in range(count)], [(i * each, each) for i in range(count)]
        return self.pool(windows.mean(1), QueryBatch(runs, keys, keys, key_runs))  # type: ignore[no-any-return]


@architecture(
    "MolmoForCausalLM",
    about="Molmo",
    examples=("allenai/Molmo-7B-D-0924", "allenai/Molmo-72B-0924"),
    media=MolmoProcessor,
    defaults=DEFAULTS,
)
def molmo(c: Config) -> CausalLM:
    if c.layer_norm_type != "rms" or c.weight_tying:
        raise UnsupportedModelError(
            "config.json: Molmo with another layer_norm_type than rms, or weight_tying, is not supported."
        )
    size, num_heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    kv_size = size // num_heads * c.get("num_key_value_heads", num_heads)
    inner = c.intermediate_size // 2
    norm = partial(RMSNorm, size, eps)

    def transform() -> QKTransform | None:
        norms = QKNorm(RMSNorm(size, eps), RMSNorm(kv_size, eps), full_width=True) if c.attention_layer_norm else None
        return norms if c.get("clip_qkv") is None else Clip(c.clip_qkv, norms)

    attn = attention(c, bias=c.qkv_bias, qk_transform=transform)
    wiring = BranchNorm if c.norm_after else PreNorm
    vocab_size = c.get("embedding_size", c.vocab_size)
    model = decoder(
        c.replace(vocab_size=vocab_size),
        norm,
        lambda i: wiring(norm, attn=attn(i), mlp=GatedMLP(size, inner, "silu")),
        NAMES,
        embed=TwoTables(vocab_size + MORE_EMBEDDINGS, size),
        tied=False,
    )
    return model.with_media(MolmoTower(c.section("vision_backbone"), size, inner), MEDIA_NAMES)
