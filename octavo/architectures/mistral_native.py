"""Checkpoints in Mistral's own format: params.json, consolidated.safetensors; Pixtral (Agrawal et al. 2024) among them.

Rope's pairs are neighbours there, in the text and in the tower.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from octavo.architectures.decoder import attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.mistral_params import LENGTH
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import SLIDING, layer_type, layer_types
from octavo.media.processors.pixtral import MistralPixtralProcessor
from octavo.parts import (
    MLP,
    CausalLM,
    Into,
    Names,
    PixtralTower,
    PreNorm,
    ProjectedPixtral,
    flat_convolution,
    softmax_then_topk,
)

LAYER, TOWER = "layers.{i}", "media.tower.encoder.layers.{i}"
VISION = "vision_encoder.transformer.layers.{i}"
NAMES = Names(
    {
        "tok_embeddings": "embed",
        "norm": "norm",
        "output": "head",
        f"{LAYER}.attention_norm": f"{LAYER}.attn_norm",
        f"{LAYER}.attention.{{wq|wk|wv}}": f"{LAYER}.attn.qkv.{{q|k|v}}",
        f"{LAYER}.attention.wo": f"{LAYER}.attn.o",
        f"{LAYER}.ffn_norm": f"{LAYER}.mlp_norm",
        f"{LAYER}.feed_forward.{{w1|w3}}": f"{LAYER}.mlp.gate_up.{{gate|up}}",
        f"{LAYER}.feed_forward.w2": f"{LAYER}.mlp.down",
        f"{LAYER}.feed_forward.gate": f"{LAYER}.mlp.router",
        f"{LAYER}.feed_forward.experts.{{e}}.{{w1|w3}}": f"{LAYER}.mlp.experts.{{e}}.gate_up.{{gate|up}}",
        f"{LAYER}.feed_forward.experts.{{e}}.w2": f"{LAYER}.mlp.experts.{{e}}.down",
    }
)
MEDIA_NAMES: dict[str, str | Into] = {
    "vision_encoder.patch_conv": Into("media.tower.patches", flat_convolution),
    "vision_encoder.ln_pre": "media.tower.first_norm",
    f"{VISION}.{{attention|ffn}}_norm": f"{TOWER}.{{attn|mlp}}_norm",
    f"{VISION}.attention.{{wq|wk|wv}}": f"{TOWER}.attn.qkv.{{q|k|v}}",
    f"{VISION}.attention.wo": f"{TOWER}.attn.o",
    f"{VISION}.feed_forward.{{w1|w3}}": f"{TOWER}.mlp.gate_up.{{gate|up}}",
    f"{VISION}.feed_forward.w2": f"{TOWER}.mlp.down",
    "vision_language_adapter.{w_in|w_out}": "media.project.{up|down}",
}
TEXT: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "vocab_size": 32768,
    "max_position_embeddings": LENGTH,
}
"""Of Mistral-7B-v0.3's file."""
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "patch_size": 16,
    "rope_theta": 10000.0,
    "adapter_bias": True,
}
"""Of Pixtral-12B's, whose text's sizes are beside it."""
PIXTRAL_TEXT = {**TEXT, "hidden_size": 5120, "num_hidden_layers": 40, "rope_theta": 1e9, "vocab_size": 131072}


@architecture(
    "MistralNativeForCausalLM",
    about="Mistral and Mixtral in Mistral's own format (params.json)",
    examples=("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-Nemo-Instruct-2407"),
    defaults=TEXT,
)
def mistral_native(c: Config) -> CausalLM:
    rope, window = make_rope(c, c.head_dim, interleaved=True), c.get("sliding_window")
    types = layer_types(c, [layer_type(window)] * c.num_hidden_layers)
    windows = [window if kind == SLIDING else None for kind in types]
    norm, attn = rms_norm(c), attention(c, rope=rope, window=windows)
    mlp: Callable[[], nn.Module] = gated_mlp(c)
    experts = c.section("moe")
    if "num_experts" in experts:
        mlp = moe(c, gated_mlp(c), experts.num_experts, softmax_then_topk(experts.num_experts_per_tok))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), NAMES)


@architecture(
    "PixtralForConditionalGeneration",
    about="Pixtral in Mistral's own format",
    examples=("mistralai/Pixtral-12B-2409",),
    media=MistralPixtralProcessor,
    defaults={**PIXTRAL_TEXT, "vision_config": VISION_DEFAULTS},
)
def pixtral(c: Config) -> CausalLM:
    vision, size = c.section("vision_config"), c.hidden_size
    tower = PixtralTower(
        vision.hidden_size,
        vision.intermediate_size,
        [vision.num_hidden_layers],
        vision.num_attention_heads,
        vision.get("head_dim", vision.hidden_size // vision.num_attention_heads),
        vision.patch_size,
        base=vision.rope_theta,
        activation="silu",
        interleaved=True,
        channels=vision.num_channels,
    )
    project = MLP(vision.hidden_size, size, "gelu", vision.adapter_bias, output_size=size)
    return mistral_native(c).with_media(ProjectedPixtral(tower, project), MEDIA_NAMES)
