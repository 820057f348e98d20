"""Where the tensors of Gemma 4 go, whether it is published alone or with towers beside it."""

from typing import Any

from octavo.architectures.gemma2 import GEMMA2_NAMES
from octavo.parts import Names, parameter, stacked

EXPERT = "layers.{i}.moe.experts.{e}"
PER_LAYER_NAMES = GEMMA2_NAMES.replacing(
    {
        "model.embed_tokens": "embed.tokens",
        "model.embed_tokens_per_layer": "embed.table",
        "model.per_layer_model_projection": "embed.project",
        "model.per_layer_projection_norm": "embed.norm",
        "model.layers.{i}.per_layer_input_gate": "layers.{i}.per_layer.gate",
        "model.layers.{i}.per_layer_projection": "layers.{i}.per_layer.project",
        "model.layers.{i}.post_per_layer_input_norm": "layers.{i}.per_layer_norm",
    }
)
GEMMA4_NAMES: dict[str, Any] = {
    "model.layers.{i}.layer_scalar": parameter("layers.{i}.scalar"),
    "model.layers.{i}.post_feedforward_layernorm_1": "layers.{i}.mlp_out_norm",
    "model.layers.{i}.post_feedforward_layernorm_2": "layers.{i}.moe_out_norm",
    "model.layers.{i}.pre_feedforward_layernorm_2": "layers.{i}.moe.norm",
    "model.layers.{i}.router.proj": "layers.{i}.moe.router",
    # Rows are divided by the root of their size, too.
    "model.layers.{i}.router.scale": parameter("layers.{i}.moe.router_norm.weight", lambda w: w * len(w) ** -0.5),
    "model.layers.{i}.router.per_expert_scale": parameter("layers.{i}.moe.expert_scale"),
    "model.layers.{i}.experts.gate_up_proj": stacked(EXPERT + ".gate_up.weight", full_name=True),
    "model.layers.{i}.experts.down_proj": stacked(EXPERT + ".down.weight", full_name=True),
    "model.layers.{i}.experts.{e}.{gate|up}_proj": EXPERT + ".gate_up.{gate|up}",
    "model.layers.{i}.experts.{e}.down_proj": EXPERT + ".down",
}
TOWERS = tuple(
    f"{prefix}{part}.*"
    for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    for prefix in ("model.", "")
)
"""What text does without."""
TEXT = "model.language_model."


def in_composite(names: Names) -> Names:
    """A text model's table for a checkpoint that has towers beside it, in every spelling that there is of that."""
    renamed = names.renamed("model.", TEXT)
    spellings = {"language_model.lm_head.": "lm_head.", "language_model.model.": TEXT, "language_model.": TEXT}
    parts = {name.split(".")[1] for name in names.table if name.startswith("model.")}
    spellings |= {f"model.{part}.": f"{TEXT}{part}." for part in sorted(parts)}
    return Names(renamed.table, (*renamed.ignored, *TOWERS)).spelled(spellings)
