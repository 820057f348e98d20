"""InternVL2 (Chen et al. 2024) and its kin: InternViT over tiles, four patches a row, and any text model.

Mono-InternVL (Luo et al. 2024) has no tower; rows of pictures pass through feed-forwards of their own. NVLM-D (Dai et
al. 2024) has more heads in its tower than its config says.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from octavo.architectures.composite import with_tower
from octavo.architectures.model_config import Config
from octavo.architectures.mono_internvl import internlm2_ve
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_config, text_model
from octavo.errors import CheckpointError
from octavo.media.processors.internvl import H2OVLProcessor, InternVLProcessor, NVLMProcessor
from octavo.ops import Backend
from octavo.parts import (
    MLP,
    CausalLM,
    EncoderAttention,
    InternViT,
    Into,
    LayerNorm,
    LayerScale,
    Linear,
    MediaData,
    MediaTower,
    PatchEmbedding,
    QKNorm,
    RMSNorm,
    SpanBatch,
    flat_convolution,
    parameter,
    pixel_shuffle,
    together,
)

EMBEDDINGS, LAYER, HERE = "vision_model.embeddings", "vision_model.encoder.layers.{i}", "media.tower.encoder.layers.{i}"
NAMES: dict[str, str | Into] = {
    f"{EMBEDDINGS}.class_embedding": parameter("media.tower.class_token", lambda w: w.flatten(0, 1)),
    f"{EMBEDDINGS}.position_embedding": parameter("media.tower.positions", lambda w: w.flatten(0, 1)),
    f"{EMBEDDINGS}.patch_embedding": Into("media.tower.patches", flat_convolution),
    f"{LAYER}.{{ls1|ls2}}": parameter(f"{HERE}.{{attn_scale|mlp_scale}}"),
    f"{LAYER}.{{norm1|norm2}}": f"{HERE}.{{attn_norm|mlp_norm}}",
    f"{LAYER}.attn.qkv": f"{HERE}.attn.qkv",
    f"{LAYER}.attn.{{q_norm|k_norm}}": f"{HERE}.attn.qk_norm.{{q|k}}",
    f"{LAYER}.attn.proj": f"{HERE}.attn.o",
    f"{LAYER}.mlp.{{fc1|fc2}}": f"{HERE}.mlp.{{up|down}}",
    "mlp1.0": "media.norm",
    "mlp1.{1|3}": "media.{first|second}",
}
MMPROJ_NAMES: dict[str, str | Into] = {
    "v.class_embd": parameter("media.tower.class_token", lambda w: w.reshape(1, -1)),
    "v.position_embd.weight": parameter("media.tower.positions", lambda w: w.reshape(-1, w.shape[-1])),
    "v.patch_embd": Into("media.tower.patches", flat_convolution),
    "v.blk.{i}.{ls1|ls2}.weight": parameter(f"{HERE}.{{attn_scale|mlp_scale}}"),
    "v.blk.{i}.{ln1|ln2}": f"{HERE}.{{attn_norm|mlp_norm}}",
    "v.blk.{i}.attn_{q|k|v}": f"{HERE}.attn.qkv.{{q|k|v}}",
    "v.blk.{i}.attn_{q|k}_norm": f"{HERE}.attn.qk_norm.{{q|k}}",
    "v.blk.{i}.attn_out": f"{HERE}.attn.o",
    "v.blk.{i}.ffn_{up|down}": f"{HERE}.mlp.{{up|down}}",
    "mm.model.mlp.{0|1|3}": "media.{norm|first|second}",
}
VISION: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": False,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qk_normalization": True,
    "num_hidden_layers": 48,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
}
DEFAULTS: dict[str, Any] = {"vision_config": VISION, "select_layer": -1, "ps_version": "v1", "downsample_ratio": 0.5}
NVLM_HEADS = 7
"""More than NVLM-D's config says, so that their number is a power of two."""


class PartRMSNorm(RMSNorm):
    """Scales by the root mean square of a row's first `counted` values (NVLM-D, whose further heads are padding)."""

    def __init__(self, size: int, counted: int, eps: float) -> None:
        super().__init__(size, eps)
        self.counted = counted

    def prepare(self, backend: Backend) -> None:
        self.compute = lambda x, weight, bias: self._normed(x, cast(Tensor, weight))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        floats = x.float()
        mean = floats[:, : self.counted].square().mean(-1, keepdim=True)
        return (floats * torch.rsqrt(mean + self.eps) * weight).to(x.dtype)


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    """What a file of a tower says, as config.json has it. llama.cpp's own shuffle is ps_version v2."""
    tensors = file.tensors
    vision = {
        **file.vision_config(),
        "norm_type": "layer_norm" if "v.blk.0.ln1.bias" in tensors else "rms_norm",
        "qkv_bias": "v.blk.0.attn_q.bias" in tensors,
        "qk_normalization": "v.blk.0.attn_q_norm.weight" in tensors,
    }
    tiles = {f"{end}_dynamic_patch": file.integer(f"vision.preproc_{end}_tiles", 0, 64) for end in ("min", "max")}
    return {
        "vision_config": vision,
        "ps_version": "v2",
        # What all published models have, and the file does not say.
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "max_dynamic_patch": 12,
        "downsample_ratio": 1 / (file.integer("vision.projector.scale_factor", 1, 64) or 2),
        **{key: count for key, count in tiles.items() if count},
    }


def intern_vit(c: Config, state: int, more_heads: int = 0) -> InternViT:
    """The tower that a vision_config describes, up to the hidden states that select_layer, `state`, chooses."""
    size, num_heads = c.hidden_size, c.num_attention_heads + more_heads
    head_dim = size // c.num_attention_heads
    norm = partial(RMSNorm if c.norm_type == "rms_norm" else LayerNorm, size, c.layer_norm_eps)

    def head_norm() -> RMSNorm:
        eps = c.layer_norm_eps
        return PartRMSNorm(num_heads * head_dim, size, eps) if more_heads else RMSNorm(size, eps)

    def layer(i: int) -> LayerScale:
        qk_norm = QKNorm(head_norm(), head_norm(), full_width=True) if c.qk_normalization else None
        attn = EncoderAttention(size, num_heads, head_dim=head_dim, bias=c.qkv_bias, out_bias=True, qk_norm=qk_norm)
        return LayerScale(norm, size, attn=attn, mlp=MLP(size, c.intermediate_size, c.hidden_act, True))

    patches = PatchEmbedding(c.patch_size, size, channels=c.num_channels)
    count = c.num_hidden_layers if "InternVisionPatchModel" not in c.get("architectures", []) else 0
    given = state + count + 1 if state < 0 else state
    if not 0 <= given <= count:
        raise CheckpointError(f"config.json: select_layer is {state}, and the tower has {count} layers.")
    return InternViT(patches, c.image_size // c.patch_size, layer, given)


class InternVLTower(MediaTower):
    """Rows of all of a picture's tiles, one after the other.

    Args:
        c: the whole config.
        tower: gives the rows of a tile's patches.
        hidden_size, inner_size: of the text, and between the projector's two products.
        bias: of these.
    """

    def __init__(self, c: Config, tower: InternViT, hidden_size: int, inner_size: int, bias: bool) -> None:
        super().__init__()
        self.tower, self.ratio, self.transposed = tower, c.downsample_ratio, c.ps_version != "v1"
        merged = int(tower.patches.outputs / self.ratio**2)
        self.norm = LayerNorm(merged, 1e-5)
        self.first, self.second = Linear(merged, inner_size, bias), Linear(inner_size, hidden_size, bias)

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        tiles = [tile for item in items for tile in item["pixel_values"]]
        rows = iter([self._merged(x) for x in self.tower(tiles, self.dtype)])
        merged = [torch.cat([next(rows) for _ in item["pixel_values"]]) for item in items]
        return together(merged, self._project)

    def _merged(self, x: Tensor) -> Tensor:
        side = math.isqrt(len(x))
        return pixel_shuffle(x, (side, side), self.ratio, self.transposed)

    def _project(self, x: Tensor, batch: SpanBatch) -> Tensor:
        x = self._activate(self.first(self.norm(x), batch), "gelu")
        return self.second(x, batch)  # type: ignore[no-any-return]


def _text(c: Config) -> CausalLM:
    section = c.section("llm_config")
    if "InternLM2VEForCausalLM" in section.get("architectures", []):
        return internlm2_ve(text_config(c))
    return text_model(section, "internlm2")


@architecture(
    "InternVLChatModel",
    about="InternVL2, Mono-InternVL",
    examples=("OpenGVLab/InternVL2-4B", "OpenGVLab/InternVL2-8B", "OpenGVLab/Mono-InternVL-2B"),
    media=InternVLProcessor,
    defaults=DEFAULTS,
    mmproj=(ProjectorFormat("internvl", _mmproj_config, lambda file: MMPROJ_NAMES, section="llm_config"),),
)
@architecture(
    "H2OVLChatModel",
    about="H2OVL Mississippi",
    examples=("h2oai/h2ovl-mississippi-800m", "h2oai/h2ovl-mississippi-2b"),
    media=H2OVLProcessor,
    defaults=DEFAULTS,
)
def internvl(c: Config) -> CausalLM:
    text, vision = _text(c), intern_vit(c.section("vision_config"), c.select_layer)
    return with_tower(c, text, InternVLTower(c, vision, text.hidden_size, text.hidden_size, True), NAMES)


@architecture(
    "NVLM_D_Model",
    "NVLM_D",
    about="NVLM-D 1.0",
    examples=("nvidia/NVLM-D-72B",),
    media=NVLMProcessor,
    defaults=DEFAULTS,
)
def nvlm(c: Config) -> CausalLM:
    text, vision = _text(c), intern_vit(c.section("vision_config"), c.select_layer, NVLM_HEADS)
    inner_size: int = text.layers[0].mlp.down.inputs  # type: ignore[assignment, union-attr]
    return with_tower(c, text, InternVLTower(c, vision, text.hidden_size, inner_size, False), NAMES)
