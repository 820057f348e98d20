"""Mistral's params.json: what it says, as a config.json would."""

from collections.abc import Mapping
from typing import Any

from octavo.architectures.config_kinds import is_integer
from octavo.architectures.rope_settings import layer_type
from octavo.errors import UnsupportedModelError
from octavo.parts.causal_lm import MOST_LAYERS

KEYS = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "vision_encoder": "vision_config",
    "tied_embeddings": "tie_word_embeddings",
}
"""Of params.json, as config.json has them."""
YARN = {"beta": "beta_fast", "alpha": "beta_slow"}
"""Of the section yarn, as rope_parameters has them."""
UNSUPPORTED = ("quantization", "llama_4_scaling", "multimodal", "mm_projector_id", "add_pre_mm_projector_layer_norm")
"""Of later models, at the top or in vision_encoder."""
LENGTH = 128_000
"""Of models whose params.json does not say how far their positions reach."""


def mistral_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config.json that say what a params.json does.

    Raises UnsupportedModelError for one that describes what is not supported.
    """
    vision = params.get("vision_encoder")
    for key in (k for part in (params, vision) if isinstance(part, dict) for k in UNSUPPORTED if part.get(k)):
        raise UnsupportedModelError(f"params.json: {key} is not supported. Use the model's usual format if it has one.")
    values = {KEYS.get(key, key): value for key, value in params.items()}
    values.setdefault("max_position_embeddings", LENGTH)
    windows = params.get("sliding_window") or params.get("_sliding_window")
    if isinstance(windows, list):  # of so many layers, and of those after them likewise
        count = n if is_integer(n := params["n_layers"], 0, MOST_LAYERS) else 0
        every = [windows[i % len(windows)] for i in range(count)]
        widths = {width for width in every if width}
        if len(widths) > 1:
            raise UnsupportedModelError("params.json: sliding windows of several widths are not supported.")
        values |= {"sliding_window": min(widths, default=None), "layer_types": [layer_type(width) for width in every]}
    elif windows:
        values["sliding_window"] = windows
    if yarn := params.get("yarn"):
        scaled = {YARN.get(key, key): value for key, value in yarn.items() if key != "apply_scale"}
        scale = {} if yarn.get("apply_scale", True) else {"attention_factor": 1.0}
        values["rope_parameters"] = {"rope_type": "yarn", **scaled, **scale}
    name = "MistralNativeForCausalLM" if vision is None else "PixtralForConditionalGeneration"
    return {"architectures": [name], "hidden_act": params.get("activation", "silu"), **values}
