"""Models with heads that guess: a golden case's tensors, and those of the layer that its checkpoints have beside it."""

import copy
from collections.abc import Mapping
from typing import Any

from tests.golden import case_named

Case = dict[str, Any]
OUTER = {"enorm": "norm", "hnorm": "norm", "eh_proj": "project", "shared_head.norm": "norm"}
MIMO_OUTER = {"enorm": "norm", "hnorm": "norm", "eh_proj": "project", "final_layernorm": "norm"}
QWEN_OUTER = {"pre_fc_norm_embedding": "norm", "pre_fc_norm_hidden": "norm", "fc": "project", "norm": "norm"}
ERNIE_OUTER = {"mtp_emb_norm.0": "norm", "mtp_hidden_norm.0": "norm", "mtp_linear_proj.0": "project"}
MTP: dict[str, tuple[str, str, Mapping[str, str], int | None]] = {
    "DeepseekV3ForCausalLM--v3": ("", "", OUTER, None),
    "DeepseekV32ForCausalLM--v3.2": ("", "", OUTER, None),
    "Glm4MoeForCausalLM--4.5": ("", "", OUTER, None),
    "Glm4MoeLiteForCausalLM--4.7-flash": ("", "", OUTER, None),
    "GlmMoeDsaForCausalLM--5": ("", "", OUTER, None),
    "HYV3ForCausalLM--295b-a21b": ("", "", MIMO_OUTER, None),
    "MiMoV2FlashForCausalLM--flash": ("model.mtp.layers.0.", "model.mtp.layers.0.", MIMO_OUTER, 1),
    "Qwen3NextForCausalLM--80b-a3b": ("mtp.", "mtp.layers.0.", QWEN_OUTER, None),
    "Qwen3_5ForConditionalGeneration--9b-text": ("mtp.", "mtp.layers.0.", QWEN_OUTER, None),
    "Ernie4_5_MoeForCausalLM--21b-a3b": ("model.", "model.mtp_block.0.", ERNIE_OUTER, 0),
}
"""By case: how the names of norms and projection begin (empty: as those of one layer more), those of the layer's
tensors, their names with what each is, and the layer of the model that has the same tensors (None: the last)."""


def with_mtp(name: str) -> Case:
    """The case of that name with a layer that predicts further tokens, of random values."""
    case = copy.deepcopy(case_named(name))
    begins, layer_begins, outer, like = MTP[name]
    section = case["config"].get("text_config", case["config"])
    count, size = section["num_hidden_layers"], section["hidden_size"]
    if not begins:
        begins = layer_begins = f"model.layers.{count}."
    if "layers." not in begins or begins.startswith("model.layers."):
        section["num_nextn_predict_layers"] = 1
    tensors = case["tensors"]
    norm = next(spec for key, spec in tensors.items() if key.endswith("input_layernorm.weight"))
    own = f"layers.{count - 1 if like is None else like}."
    for key in list(tensors):
        before, found, rest = key.partition(own)
        if found and before.endswith("."):
            if "mimo" in name.lower():
                rest = rest.replace("post_attention_layernorm", "pre_mlp_layernorm")
            tensors[layer_begins + rest] = tensors[key]
    if "MiMo" in name:
        dense = {k.partition("layers.0.")[2]: v for k, v in tensors.items() if ".layers.0.mlp." in k and "mtp" not in k}
        for key in [k for k in tensors if k.startswith(layer_begins + "mlp.")]:
            del tensors[key]
        tensors |= {layer_begins + k: v for k, v in dense.items()}
    for key, kind in outer.items():
        projection = {"shape": [size, 2 * size], "center": 0.0, "scale": (3 / (2 * size)) ** 0.5}
        tensors[f"{begins}{key}.weight"] = projection if kind == "project" else {**norm, "shape": [size]}
    return case
