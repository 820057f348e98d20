"""MiniCPM-V 2.0, 2.5 and 2.6 (Yao et al. 2024): a SigLIP tower reads the slices of a picture, and a resampler it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.llama import llama
from octavo.architectures.minicpm import minicpm
from octavo.architectures.model_config import Config
from octavo.architectures.projector_format import ProjectorFormat, ProjectorHeader
from octavo.architectures.qwen2 import qwen2
from octavo.architectures.registry import architecture
from octavo.architectures.vision_config import mmproj_tower_names
from octavo.errors import UnsupportedModelError
from octavo.media.processors.minicpmv import MiniCPMVProcessor, version_of
from octavo.parts import (
    MLP,
    CausalLM,
    EncoderAttention,
    EncoderLayers,
    Into,
    LayerNorm,
    MediaData,
    MediaTower,
    PatchEmbedding,
    PreNorm,
    Resampler,
    bucketed_positions,
    flat_convolution,
    parameter,
    resampler_names,
    resized_positions,
    sin_cos_positions,
    together,
)

QUERY_HEAD = 128
"""Values of each of the resampler's heads."""
Grid = tuple[int, int]
LAYER = "media.encoder.layers.{i}"
RESAMPLER: dict[str, str | Into] = {
    **resampler_names("resampler", "media.resampler"),
    "resampler.ln_post": "media.resampler.norm",
    "resampler.proj": parameter("media.resampler.out.weight", Tensor.t),
}
TIMM_NAMES: dict[str, str | Into] = {
    **RESAMPLER,
    "resampler.pos_embed": parameter("media.query_positions"),
    "vpm.pos_embed": parameter("media.positions", lambda w: w.flatten(0, 1)),
    "vpm.patch_embed.proj": Into("media.patches", flat_convolution),
    "vpm.blocks.{i}.norm{1|2}": f"{LAYER}.{{attn|mlp}}_norm",
    "vpm.blocks.{i}.attn.{qkv|proj}": f"{LAYER}.attn.{{qkv|o}}",
    "vpm.blocks.{i}.mlp.{fc1|fc2}": f"{LAYER}.mlp.{{up|down}}",
    "vpm.norm": "media.norm",
}
SIGLIP_NAMES: dict[str, str | Into] = {
    **RESAMPLER,
    "vpm.embeddings.position_embedding.weight": parameter("media.positions"),
    "vpm.embeddings.patch_embedding": Into("media.patches", flat_convolution),
    "vpm.encoder.layers.{i}.layer_norm{1|2}": f"{LAYER}.{{attn|mlp}}_norm",
    "vpm.encoder.layers.{i}.self_attn.{q|k|v}_proj": f"{LAYER}.attn.qkv.{{q|k|v}}",
    "vpm.encoder.layers.{i}.self_attn.out_proj": f"{LAYER}.attn.o",
    "vpm.encoder.layers.{i}.mlp.{fc1|fc2}": f"{LAYER}.mlp.{{up|down}}",
    "vpm.post_layernorm": "media.norm",
}


def in_one_row(table: Tensor, grid: Grid) -> Tensor:
    """Positions of 2.5, whose tower takes all patches of a slice for a row."""
    return bucketed_positions(table, (1, grid[0] * grid[1]))


@dataclass(frozen=True)
class Version:
    """What differs between the published models."""

    text: Callable[[Config], CausalLM]
    text_row: str
    """The text model's row, whose defaults are the config's."""
    image_size: int
    """Of the tower that the config class takes where config.json says nothing."""
    activation: str
    place: Callable[[Tensor, Grid], Tensor]
    """Of the tower's table of positions and the grid of a slice's patches, the patches' positions."""
    has_query_positions: bool
    names: Mapping[str, str | Into]


VERSIONS = {
    2.0: Version(
        minicpm, "MiniCPMForCausalLM", 384, "gelu", partial(resized_positions, antialias=True), True, TIMM_NAMES
    ),
    2.5: Version(llama, "LlamaForCausalLM", 980, "gelu_pytorch_tanh", in_one_row, False, SIGLIP_NAMES),
    2.6: Version(qwen2, "Qwen2ForCausalLM", 980, "gelu_pytorch_tanh", bucketed_positions, False, SIGLIP_NAMES),
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
DEFAULTS = {"query_num": 64, "drop_vision_last_layer": True}


class MiniCPMVTower(MediaTower):
    """As many rows for each slice of a picture as the resampler has queries; the whole picture comes first."""

    def __init__(self, version: Version, vision: Config, layers: int, num_queries: int, hidden_size: int) -> None:
        super().__init__()
        size, num_heads, self.patch_size = vision.hidden_size, vision.num_attention_heads, vision.patch_size
        norm = partial(LayerNorm, size, vision.layer_norm_eps)
        mlp = partial(MLP, size, vision.intermediate_size, vision.get("hidden_act", version.activation), True)
        self.place = version.place
        self.patches = PatchEmbedding(self.patch_size, size)
        self.positions = _empty((vision.image_size // self.patch_size) ** 2, size)
        self.encoder = EncoderLayers(
            lambda i: PreNorm(norm, attn=EncoderAttention(size, num_heads, bias=True), mlp=mlp()), layers
        )
        self.norm = norm()
        self.query_positions = _empty(num_queries, hidden_size) if version.has_query_positions else None
        self.resampler = Resampler(num_queries, hidden_size, hidden_size // QUERY_HEAD, size)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        slices, grids, counts = list[Tensor](), list[Grid](), list[int]()
        for item in items:
            own = [self._filled_up(each) for each in (*item["source"], *item.get("slices", ()))]
            slices += own
            grids += self._grids(item, own)
            counts.append(len(own))
        towers = {grid: self.place(self.positions, grid) for grid in set(grids)}
        keys = {grid: sin_cos_positions(self.resampler.query.shape[1], grid) for grid in set(grids)}
        patches = self.patches.of(slices, self.dtype)
        rows = [x + towers[grid].to(x.dtype) for x, grid in zip(patches, grids, strict=True)]
        rows = together(rows, lambda x, batch: self.norm(self.encoder(x, batch)))
        read = iter(self.resampler(rows, [keys[grid] for grid in grids], self.query_positions))
        return [torch.cat([next(read) for _ in range(count)]) for count in counts]

    def _filled_up(self, pixels: Tensor) -> Tensor:
        """`pixels` `[3, height, width]`, with zeros at the right and at the bottom up to whole patches."""
        _, height, width = pixels.shape
        return pad(pixels, (0, -width % self.patch_size, 0, -height % self.patch_size))

    def _grids(self, item: MediaData, slices: Sequence[Tensor]) -> list[Grid]:
        """Rows and columns of each slice's patches; where they lie side by side, the item says it."""
        if "tgt_sizes" in item:
            return [(int(rows), int(columns)) for rows, columns in item["tgt_sizes"]]
        return [(each.shape[1] // self.patch_size, each.shape[2] // self.patch_size) for each in slices]


def _empty(rows: int, size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, size), requires_grad=False)


def _mmproj_names(file: ProjectorHeader) -> dict[str, str | Into]:
    return {
        **mmproj_tower_names(file, "media"),
        "v.post_ln": "media.norm",
        "resampler.query": parameter("media.resampler.query"),
        "resampler.kv": "media.resampler.project",
        "resampler.attn.{q|k|v}": "media.resampler.attn.inputs.{0|1|2}",
        "resampler.attn.out": "media.resampler.attn.o",
        "resampler.{ln_q|ln_kv|ln_post|proj}": "media.resampler.{query_norm|key_norm|norm|out}",
        # Sines and cosines of every place.
        "resampler.{pos_embed_k|pos_embd_k}": parameter("media.{unused|unused}"),
    }


def _mmproj_config(file: ProjectorHeader) -> dict[str, Any]:
    vision, tensors = file.vision_config(), file.tensors
    table, query = tensors.get("v.position_embd.weight"), tensors.get("resampler.query")
    side = 0 if table is None or not table.shape else math.isqrt(table.shape[0])
    sizes = {key: vision[key] for key in SO400M}
    return {
        "version": 2.6,
        "drop_vision_last_layer": False,
        "patch_size": vision["patch_size"],
        "vision_config": {**sizes, "image_size": side * vision["patch_size"]},
        **({} if query is None or not query.shape else {"query_num": query.shape[0]}),
    }


def _mmproj_preprocessor(file: ProjectorHeader) -> dict[str, Any]:
    """The file's image_size is the slices'; pictures are numbered, as published."""
    return {"version": 2.6, "scale_resolution": file.vision_config()["image_size"], "use_image_id": True}


MMPROJ = ProjectorFormat(
    "resampler",
    _mmproj_config,
    _mmproj_names,
    section="",
    text=lambda name: f"llm.{name}",
    when=lambda file: file.integer("minicpmv_version", 0, 1 << 30) == 3,
    preprocessor=_mmproj_preprocessor,
)
"""Of 2.6, as llama.cpp numbers versions."""


@architecture(
    "MiniCPMV",
    about="MiniCPM-V 2.6, MiniCPM-Llama3-V 2.5, MiniCPM-V 2.0",
    examples=("openbmb/MiniCPM-V-2_6", "openbmb/MiniCPM-Llama3-V-2_5", "openbmb/MiniCPM-V-2"),
    media=MiniCPMVProcessor,
    defaults=DEFAULTS,
    mmproj=(MMPROJ,),
)
def minicpmv(c: Config) -> CausalLM:
    """Its version decides the text model: MiniCPM, Llama 3 or Qwen2."""
    c.get("version")  # which is checked, where the file says it
    number = version_of(c.values)
    if (version := VERSIONS.get(number)) is None:
        raise UnsupportedModelError(f"MiniCPM-V {number} is not supported; 2.0, 2.5 and 2.6 are.")
    vision = {**SO400M, "image_size": version.image_size}
    c = c.with_defaults({**defaults_of(version.text_row), **DEFAULTS, "vision_config": vision})
    section = c.section("vision_config")
    layers = section.num_hidden_layers - c.drop_vision_last_layer
    tower = MiniCPMVTower(version, section, layers, c.query_num, c.hidden_size)
    return version.text(c).with_media(tower, version.names, text="llm.")
