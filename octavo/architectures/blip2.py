"""BLIP-2 (Li et al. 2023): an EVA-CLIP tower, a Q-Former whose queries read it, and OPT."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.config_defaults import defaults_of
from octavo.architectures.model_config import Config
from octavo.architectures.opt import opt
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
from octavo.media.processors.blip2 import Blip2Processor
from octavo.parts import (
    MLP,
    CausalLM,
    EncoderAttention,
    EncoderLayers,
    Into,
    LayerNorm,
    Linear,
    MediaData,
    MediaTower,
    PatchEmbedding,
    PostNorm,
    PreNorm,
    QueryAttention,
    QueryBatch,
    SpanBatch,
    flat_convolution,
    parameter,
    together,
)

VISION = "vision_model.encoder.layers.{i}"
QFORMER = "qformer.encoder.layer.{i}"
NAMES: dict[str, str | Into] = {
    "vision_model.embeddings.class_embedding": parameter("media.class_token", lambda w: w.flatten(0, 1)),
    "vision_model.embeddings.position_embedding": parameter("media.positions", lambda w: w.flatten(0, 1)),
    "vision_model.embeddings.patch_embedding": Into("media.patches", flat_convolution),
    f"{VISION}.layer_norm1": "media.encoder.layers.{i}.attn_norm",
    f"{VISION}.self_attn.qkv": "media.encoder.layers.{i}.attn.qkv",
    f"{VISION}.self_attn.projection": "media.encoder.layers.{i}.attn.o",
    f"{VISION}.layer_norm2": "media.encoder.layers.{i}.mlp_norm",
    f"{VISION}.mlp.{{fc1|fc2}}": "media.encoder.layers.{i}.mlp.{up|down}",
    "vision_model.post_layernorm": "media.norm",
    "query_tokens": parameter("media.query", lambda w: w.flatten(0, 1)),
    "qformer.layernorm": "media.query_norm",
    f"{QFORMER}.attention.attention.{{query|key|value}}": "media.qformer.layers.{i}.attn.qkv.{q|k|v}",
    f"{QFORMER}.attention.output.dense": "media.qformer.layers.{i}.attn.o",
    f"{QFORMER}.attention.output.LayerNorm": "media.qformer.layers.{i}.attn_norm",
    f"{QFORMER}.crossattention.attention.{{query|key|value}}": "media.qformer.layers.{i}.cross_attn.inputs.{0|1|2}",
    f"{QFORMER}.crossattention.output.dense": "media.qformer.layers.{i}.cross_attn.o",
    f"{QFORMER}.crossattention.output.LayerNorm": "media.qformer.layers.{i}.cross_attn_norm",
    f"{QFORMER}.intermediate_query.dense": "media.qformer.layers.{i}.mlp.up",
    f"{QFORMER}.output_query.dense": "media.qformer.layers.{i}.mlp.down",
    f"{QFORMER}.output_query.LayerNorm": "media.qformer.layers.{i}.mlp_norm",
    "language_projection": "media.project",
}


class Blip2Tower(MediaTower):
    """Queries that attend to each other, and to all of a picture's rows."""

    def __init__(self, vision: Config, qformer: Config, num_queries: int, hidden_size: int) -> None:
        super().__init__()
        size, patch_size, own = vision.hidden_size, vision.patch_size, qformer.hidden_size
        norm = partial(LayerNorm, size, vision.layer_norm_eps)
        own_norm = partial(LayerNorm, own, qformer.layer_norm_eps)
        num_positions = (vision.image_size // patch_size) ** 2 + 1
        self.patches = PatchEmbedding(patch_size, size)
        self.class_token = nn.Parameter(torch.empty(1, size), requires_grad=False)
        self.positions = nn.Parameter(torch.empty(num_positions, size), requires_grad=False)

        def vision_layer(i: int) -> nn.Module:
            attn = EncoderAttention(size, vision.num_attention_heads, bias=vision.qkv_bias, out_bias=True)
            return PreNorm(norm, attn=attn, mlp=MLP(size, vision.intermediate_size, vision.hidden_act, True))

        def query_layer(i: int) -> nn.Module:
            num_heads, crosses = qformer.num_attention_heads, i % qformer.cross_attention_frequency == 0
            return PostNorm(
                own_norm,
                attn=EncoderAttention(own, num_heads, bias=True),
                cross_attn=QueryAttention(own, num_heads, qformer.encoder_hidden_size) if crosses else None,
                mlp=MLP(own, qformer.intermediate_size, qformer.hidden_act, True),
            )

        self.encoder = EncoderLayers(vision_layer, vision.num_hidden_layers)
        self.norm = norm()
        self.query = nn.Parameter(torch.empty(num_queries, own), requires_grad=False)
        self.query_norm = own_norm()
        self.qformer = EncoderLayers(query_layer, qformer.num_hidden_layers)
        self.project = Linear(own, hidden_size, True)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        pictures = self.patches.of([item["pixel_values"] for item in items], self.dtype)
        rows = [torch.cat([self.class_token, patches]) + self.positions for patches in pictures]
        seen = torch.cat(rows)
        runs = [(i * len(self.positions), len(self.positions)) for i in range(len(items))]
        seen = self.norm(self.encoder(seen, SpanBatch(runs)))

        def read(x: Tensor, batch: SpanBatch) -> Tensor:
            x = self.qformer(self.query_norm(x), QueryBatch(batch.runs, seen, seen, runs))
            return self.project(x, batch)  # type: ignore[no-any-return]

        return together([self.query] * len(items), read)


DEFAULTS = {
    "num_query_tokens": 32,
    "text_config": defaults_of("OPTForCausalLM"),
    "vision_config": {
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    },
    "qformer_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "encoder_hidden_size": 1408,
        "cross_attention_frequency": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    },
}
"""Of the published config class and its parts."""


@architecture(
    "Blip2ForConditionalGeneration",
    about="BLIP-2 with OPT",
    examples=("Salesforce/blip2-opt-2.7b", "Salesforce/blip2-opt-6.7b"),
    media=Blip2Processor,
    defaults=DEFAULTS,
)
def blip2(c: Config) -> CausalLM:
    text = c.section("text_config")
    kind = text.get("model_type", "opt")
    if kind != "opt":
        raise UnsupportedModelError(f"BLIP-2 with {kind} for its text is not supported; it is with OPT.")
    if text.get("word_embed_proj_dim", text.hidden_size) != text.hidden_size:
        raise UnsupportedModelError("BLIP-2 with a word_embed_proj_dim other than hidden_size is not supported.")
    tower = Blip2Tower(c.section("vision_config"), c.section("qformer_config"), c.num_query_tokens, text.hidden_size)
    return opt(text).with_media(tower, NAMES, text="language_model.")
