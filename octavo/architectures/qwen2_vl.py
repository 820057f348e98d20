"""Qwen2-VL (Wang et al. 2024): pictures of any size, films in pairs of frames, and positions on three axes."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.architectures.pixtral_config import axial_base
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.qwen2 import qwen2
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import AXES, rope_settings
from octavo.architectures.text_config import text_config
from octavo.architectures.vision_config import mmproj_tower_names
from octavo.errors import CheckpointError
from octavo.media.processors.qwen2_vl import Qwen2VLProcessor
from octavo.parts import (
    MLP,
    CausalLM,
    EncoderAttention,
    EncoderLayers,
    GridTower,
    Into,
    LayerNorm,
    MediaData,
    PreNorm,
    SpanBatch,
    flat_convolution,
    frame_runs,
    together,
)

BLOCK, LAYER = "visual.blocks.{i}", "media.encoder.layers.{i}"
NAMES: dict[str, str | Into] = {
    "visual.patch_embed.proj": Into("media.patches", flat_convolution),
    f"{BLOCK}.{{norm1|norm2}}": f"{LAYER}.{{attn_norm|mlp_norm}}",
    f"{BLOCK}.attn.qkv": f"{LAYER}.attn.qkv",
    f"{BLOCK}.attn.proj": f"{LAYER}.attn.o",
    f"{BLOCK}.mlp.{{fc1|fc2}}": f"{LAYER}.mlp.{{up|down}}",
    "visual.merger.ln_q": "media.norm",
    "visual.merger.mlp.{0|2}": "media.merger.{up|down}",
}
SPELLINGS = {"model.visual.": "visual.", "model.language_model.": "model."}
"""Of transformers 5."""
TEXT: Mapping[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "max_window_layers": 80,
    "tie_word_embeddings": False,
}
VISION: Mapping[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 4,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""What the published config classes take for keys that are left out."""


class Qwen2VLTower(GridTower):
    """Patches that see those of their own pair of frames; neighbours two by two make a row.

    Args:
        c: the vision_config.
        hidden_size: of the text.
    """

    def __init__(self, c: Config, hidden_size: int) -> None:
        size, heads = c.embed_dim, c.num_heads
        values = c.in_channels * c.temporal_patch_size * c.patch_size**2
        super().__init__(values, size, size // heads, axial_base(c), c.spatial_merge_size)
        norm = partial(LayerNorm, size, 1e-6)

        def layer(i: int) -> PreNorm:
            attn = EncoderAttention(size, heads, bias=True)
            return PreNorm(norm, attn=attn, mlp=MLP(size, int(size * c.mlp_ratio), c.hidden_act, True))

        self.encoder, self.norm = EncoderLayers(layer, c.depth), norm()
        self.merger = MLP(self.merged, self.merged, "gelu", True, output_size=hidden_size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        patches, grids = self.read(kind, items)
        x = self.encoder(torch.cat(patches), SpanBatch(frame_runs(grids), angles=self.angles(grids)))
        return together(torch.split(self.norm(x).view(-1, self.merged), self.merged_counts(grids)), self.merger)


def _mmproj_names(file: ProjectorHeader) -> dict[str, str | Into]:
    return {
        **mmproj_tower_names(file, "media"),
        "v.post_ln": "media.norm",
        "mm.{0|2}": "media.merger.{up|down}",
    }


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    vision, up = file.vision_config(), file.tensors.get("v.blk.0.ffn_up.weight")
    # The file's own feed_forward_length is 0, or the text model's hidden_size.
    inner = 0 if up is None else math.prod(up.shape) // vision["hidden_size"]
    tokens = {f"{kind}_token_id": file.token(f"<|{kind}_pad|>") for kind in ("image", "video")}
    return {
        "vision_config": {
            "depth": vision["num_hidden_layers"],
            "embed_dim": vision["hidden_size"],
            "mlp_ratio": inner / vision["hidden_size"],
            "num_heads": vision["num_attention_heads"],
            "hidden_act": vision["hidden_act"],
            "patch_size": vision["patch_size"],
            "spatial_merge_size": file.integer("vision.spatial_merge_size", 1, 64) or 2,
        },
        "text_config": {
            "rope_scaling": {"rope_type": "default", AXES: (file.text_numbers("rope.dimension_sections", 4) or [])[:3]}
        },
        **{key: token for key, token in tokens.items() if token is not None},
    }


def _mmproj_preprocessor(file: ProjectorHeader) -> dict[str, Any]:
    """Bounds of a picture's size as published where the file has none, which converters of before 2025 left out."""
    least, most = (file.integer(f"vision.image_{end}_pixels", 1, 1 << 24) for end in ("min", "max"))
    edges = {"patch_size": file.vision_config()["patch_size"]}
    return {"min_pixels": least or 56 * 56, "max_pixels": most or 28 * 28 * 16384, **edges}


@architecture(
    "Qwen2VLForConditionalGeneration",
    about="Qwen2-VL, and embedders made of it",
    examples=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct", "MrLight/dse-qwen2-2b-mrl-v1"),
    media=Qwen2VLProcessor,
    defaults={**TEXT, "vision_config": VISION},
    mmproj=(
        ProjectorFormat("qwen2vl_merger", _mmproj_config, _mmproj_names, text=str, preprocessor=_mmproj_preprocessor),
    ),
)
def qwen2_vl(c: Config) -> CausalLM:
    text = text_on_axes(c)
    tower = Qwen2VLTower(c.section("vision_config"), text.hidden_size)
    model = text.with_media(tower, NAMES)
    model.names = model.names.spelled(SPELLINGS)
    return model


def text_on_axes(c: Config) -> CausalLM:
    """The language model, whose keys stand in a section or beside everything else."""
    section = text_config(c)
    section = Config({**section.values, **tied(c)}, TEXT, section.path)
    if not rope_settings(section).get(AXES):
        raise CheckpointError(f"config.json: rope_scaling has no {AXES}, which positions on three axes need.")
    if rope_settings(section).get("mrope_interleaved"):
        raise CheckpointError("config.json: rope_scaling has mrope_interleaved, which Qwen2-VL has not.")
    text = qwen2(section)
    text.tied_if_absent = True
    return text


def tied(c: Config) -> dict[str, Any]:
    """Whether head and table are one, which stands beside the text's section where there is one."""
    return {key: c.values[key] for key in ("tie_word_embeddings",) if key in c}
