"""How llama.cpp stores Gemma 4's text."""

from typing import Any

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, Joined
from octavo.architectures.rope_settings import FULL, SLIDING

STILL = 1e29
TABLE = "per_layer_token_embd.weight"


def _full_rope(shared: dict[str, Any]) -> dict[str, Any]:
    """Of full layers, some of whose pairs stand still: their angles are divided by 1e30."""
    factors = (shared.get("rope_scaling") or {}).get("factors", [1.0])
    share = min(1.0, (sum(factor < STILL for factor in factors) + 0.5) / len(factors))
    return {"rope_type": "proportional", "partial_rotary_factor": share, "rope_theta": shared["rope_theta"]}


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    types: list[str] = shared["layer_types"]
    full, counts, sizes = types.index(FULL), shared["num_key_value_heads"], shared["intermediate_size"]
    heads = counts if isinstance(counts, list) else [counts] * len(types)
    widths = sizes if isinstance(sizes, list) else [sizes]
    sliding = {"rope_type": "default", "rope_theta": file.value("rope.freq_base_swa", 10000.0)}
    return {
        "head_dim": file.value("attention.key_length_swa"),
        "global_head_dim": file.value("attention.key_length"),
        "num_key_value_heads": heads[types.index(SLIDING) if SLIDING in types else full],
        "num_global_key_value_heads": heads[full],
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in file.tensors,
        "num_kv_shared_layers": file.value("attention.shared_kv_layers", 0),
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] > widths[0],
        "hidden_size_per_layer_input": file.value("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": file.tensors[TABLE].shape[0] if TABLE in file.tensors else shared["vocab_size"],
        "enable_moe_block": bool(file.value("expert_count")),
        "top_k_experts": file.value("expert_used_count"),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_scaling": None,
        "rope_parameters": {FULL: _full_rope(shared), SLIDING: sliding},
        "partial_rotary_factor": None,
        "image_token_id": None,
        "video_token_id": None,
        "audio_token_id": None,
    }


GEMMA4_FORMAT = GGUFFormat(
    "gemma4",
    config=_from_gguf,
    joined={
        "model.layers.{i}.router.scale": Joined(("blk.{i}.ffn_gate_inp.scale",), lambda scale: scale),
        "model.layers.{i}.router.per_expert_scale": Joined(("blk.{i}.ffn_down_exps.scale",), lambda scale: scale),
    },
)
