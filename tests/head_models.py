"""Models with heads that guess: a golden case's tensors, and those of the layer that its checkpoints have beside it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from octavo.tools.recipe import spec
from tests.golden import case_named, write_model

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
    "NemotronHForCausalLM--30b-latents": ("mtp.layers.", "", {}, None),
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
    if "Nemotron" in name:
        return _in_chain(case)
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


def _in_chain(case: Case) -> Case:
    """Nemotron-H's: attention and experts, each with a norm, as two layers."""
    tensors, size = case["tensors"], case["config"]["hidden_size"]
    case["config"] |= {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*E"}
    for key in list(tensors):
        for own, other in (("model.layers.3.", "mtp.layers.0."), ("model.layers.4.", "mtp.layers.1.")):
            if key.startswith(own):
                tensors[other + key.removeprefix(own)] = tensors[key]
    norm = tensors["model.norm_f.weight"]
    tensors |= {f"mtp.layers.{key}.weight": norm for key in ("0.enorm", "0.hnorm", "1.final_layernorm")}
    tensors["mtp.layers.0.eh_proj.weight"] = spec("mtp.layers.0.eh_proj.weight", [size, 2 * size])
    return case


def llama_layer(size: int, inner: int, heads: tuple[int, int, int], wide: bool = False) -> dict[str, list[int]]:
    """Shapes of a layer's weights; `heads` are query heads, key heads and their values."""
    num_heads, kv_heads, head_dim = heads
    inputs = 2 * size if wide else size
    return {
        "self_attn.q_proj": [num_heads * head_dim, inputs],
        "self_attn.k_proj": [kv_heads * head_dim, inputs],
        "self_attn.v_proj": [kv_heads * head_dim, inputs],
        "self_attn.o_proj": [size, num_heads * head_dim],
        "mlp.gate_proj": [inner, size],
        "mlp.up_proj": [inner, size],
        "mlp.down_proj": [size, inner],
        "post_attention_layernorm": [size],
    }


def eagle_head(config: Mapping[str, Any], method: str, draft_vocab: int = 0, reads: tuple[int, ...] = ()) -> Case:
    """A head for a model of that config, as its folder would have it, of random values."""
    size, vocabulary = config["hidden_size"], config["vocab_size"]
    heads = (4, 2, 16)
    own = {
        "architectures": ["LlamaForCausalLMEagle3" if method == "eagle3" else "LlamaForCausalLM"],
        "hidden_size": size,
        "vocab_size": vocabulary,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
    }
    if method == "eagle3":
        own |= {"draft_vocab_size": draft_vocab or vocabulary, "eagle_aux_hidden_state_layer_ids": list(reads)}
        layer = {**llama_layer(size, 48, heads, wide=True), "hidden_norm": [size], "input_layernorm": [size]}
        shapes = {f"midlayer.{key}": shape for key, shape in layer.items()}
        shapes |= {"fc": [size, len(reads) * size], "norm": [size], "lm_head": [draft_vocab or vocabulary, size]}
    else:
        shapes = {f"layers.0.{key}": shape for key, shape in llama_layer(size, 48, heads).items()}
        shapes |= {"fc": [size, 2 * size], "embed_tokens": [vocabulary, size]}
    tensors = {f"{key}.weight": spec(f"head.{key}.weight", shape) for key, shape in shapes.items()}
    return {"config": own, "files": {}, "tensors": tensors, "cases": []}


def write_head(case: Case, folder: Path) -> Path:
    """The head's folder; of a smaller vocabulary, with every second or third of the model's tokens."""
    write_model(case, folder)
    count, whole = case["config"].get("draft_vocab_size", 0), case["config"]["vocab_size"]
    if count and count != whole:
        tokens = torch.arange(count) * (whole // count)
        weights = load_file(folder / "model.safetensors")
        t2d = torch.zeros(whole, dtype=torch.bool)
        t2d[tokens] = True
        save_file({**weights, "d2t": tokens - torch.arange(count), "t2d": t2d}, folder / "model.safetensors")
    return folder


def medusa_heads(config: Mapping[str, Any], by_authors: bool, own_vocab: int = 0) -> Case:
    """Three of Medusa's heads for a model of that config, as vLLM or as their authors store them."""
    size, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes = dict[str, list[int]]()
    for head in range(3):
        for layer in range(2):
            own = f"{head}.{layer}.linear" if by_authors else f"blocks.{head}.layers.{layer}"
            shapes |= {f"{own}.weight": [size, size]} | ({f"{own}.bias": [size]} if by_authors else {})
        shapes[f"{head}.2.weight" if by_authors else f"lm_heads.{head}.weight"] = [own_vocab or vocabulary, size]
    own = {"medusa_num_heads": 3, "medusa_num_layers": 2}
    if not by_authors:
        own = {"num_heads": 3, "num_hidden_layers": 2, "hidden_size": size, "vocab_size": vocabulary}
        own |= {"truncated_vocab_size": own_vocab or vocabulary}
    tensors = {key: spec(f"medusa.{key}", shape) for key, shape in shapes.items()}
    return {"config": own, "files": {}, "tensors": tensors, "cases": []}
