"""PaliGemma (Beyer et al. 2024): SigLIP, one layer to the size of Gemma's rows, and a prompt that is seen both ways."""

from typing import Any

from octavo.architectures.composite import with_tower
from octavo.architectures.llava import LlavaTower
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.text_config import text_model
from octavo.architectures.vision_config import tower_names, vision_tower
from octavo.media.processors.paligemma import PaliGemmaProcessor
from octavo.parts import CausalLM, Linear

NAMES = {**tower_names(), "multi_modal_projector.linear": "media.project"}
DEFAULTS: dict[str, Any] = {
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4096,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "text_config": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "vocab_size": 257152,
    },
}


@architecture(
    "PaliGemmaForConditionalGeneration",
    about="PaliGemma",
    examples=("google/paligemma-3b-pt-224", "google/paligemma-3b-mix-448"),
    media=PaliGemmaProcessor,
    defaults=DEFAULTS,
)
def paligemma(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "gemma")
    tower = vision_tower(c.section("vision_config"), "siglip_vision_model", last_norm=True)
    project = Linear(tower.output_size, text.hidden_size, True)
    # Rows are divided by the root of hidden_size, which is what Gemma then multiplies all embeddings with.
    scale = text.tokens.scale / text.hidden_size**0.5
    return with_tower(c, text, LlavaTower(tower, project, drop_first=False, scale=scale), NAMES)
