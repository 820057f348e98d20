"""How llama.cpp stores latent attention and DeepSeek's routers."""

from typing import Any

import torch
from torch import Tensor

from octavo.architectures.gguf_format import SIGMOID, GGUFHeader, Joined


def latent_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """The heads' sizes are under other keys in files in which attention is one of latents."""
    rope_dim, scaling = file.value("rope.dimension_count"), shared.get("rope_scaling")
    key, value = (
        file.value(f"attention.{k}_length_mla", file.value(f"attention.{k}_length")) for k in ("key", "value")
    )
    if scaling and (multiplier := file.value("rope.scaling.yarn_log_multiplier")):
        scaling = {**scaling, "mscale": multiplier * 10, "mscale_all_dim": multiplier * 10}
    return {
        "q_lora_rank": file.value("attention.q_lora_rank"),
        "kv_lora_rank": file.value("attention.kv_lora_rank"),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": key - rope_dim,
        "v_head_dim": value,
        "rope_scaling": scaling,
    }


def _with_values(keys: Tensor, values: Tensor) -> Tensor:
    """Stacks `[heads, rank, key_dim]` and `[heads, value_dim, rank]` to `[heads * (key_dim + value_dim), rank]`."""
    return torch.cat([keys.transpose(1, 2), values], dim=1).flatten(0, 1)


LATENT_PARTS = {
    "model.layers.{i}.self_attn.kv_b_proj.weight": Joined(
        ("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight"), _with_values
    )
}


def balances(file: GGUFHeader) -> bool:
    """Whether experts are scored by themselves, as DeepSeek-V3's: the first files of GLM-4.7-Flash do not say it."""
    is_flash = file.value("block_count") in (47, 48) and file.value("vocab_size") == 154880
    return bool(file.value("expert_gating_func", SIGMOID if is_flash else None) == SIGMOID)
