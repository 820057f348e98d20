"""Families of 2025 and 2026 as llama.cpp's converter writes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.loading.gguf_parts import Array, Config, Kind, Named, first, heads_of, llama3_factors, permuted

TOWERS = (
    "vision_model.",
    "visual.",
    "vision_tower.",
    "audio_tower.",
    "multi_modal_projector.",
    "embed_vision.",
    "embed_audio.",
)
SIGMOID = 2


def usual(name: str, x: Array, c: Config, changes: Callable[[str, Array, Config], Named] | None = None) -> Named:
    """What the converter does to every model: no towers, parameters made biases, a decay's rate, flat convolutions."""
    name = name.replace("language_model.", "")
    if name.startswith((*TOWERS, *(f"model.{tower}" for tower in TOWERS))):
        return
    for ending, spelled in (
        (".e_score_correction_bias", ".e_score_correction.bias"),
        (".expert_bias", ".expert_bias.bias"),
        (".dt_bias", ".dt_proj.bias"),
        (".sinks", ".sinks.weight"),
    ):
        if name.endswith(ending):
            name = name.removesuffix(ending) + spelled
    if name.endswith(".A_log"):
        x = -np.exp(x)
    if name.endswith(("conv1d.weight", ".conv.conv.weight")):
        x = x.reshape(x.shape[0], x.shape[-1])
    yield from [(name, x)] if changes is None else changes(name, x, c)


def changed(changes: Callable[[str, Array, Config], Named]) -> Callable[[str, Array, Config], Named]:
    return partial(usual, changes=changes)


def rope(c: Config) -> dict[str, Any]:
    """The base, the share and the scaling of a config's positions, those of full layers where there are several."""
    said = c.get("rope_parameters") or c.get("rope_scaling") or {}
    said = said.get("full_attention", said)
    kind = first(said, "rope_type", "type")
    fraction = first(said, "partial_rotary_factor", default=c.get("partial_rotary_factor"))
    head_dim = first(c, "head_dim", default=heads_of(c)[2])
    scaled = {
        "type": kind,
        "factor": said.get("factor"),
        "original_context_length": said.get("original_max_position_embeddings"),
        "yarn_attn_factor": said.get("attention_factor"),
        "yarn_beta_fast": said.get("beta_fast"),
        "yarn_beta_slow": said.get("beta_slow"),
    }
    return {
        "rope.freq_base": float(said.get("rope_theta") or c.get("rope_theta", 10000.0)),
        "rope.dimension_count": None if fraction is None else int(head_dim * fraction),
        **({f"rope.scaling.{key}": value for key, value in scaled.items()} if kind == "yarn" else {}),
    }


def experts(c: Config) -> dict[str, Any]:
    """How experts are chosen."""
    return {
        **rope(c),
        "expert_gating_func": SIGMOID,
        "expert_group_count": c.get("n_group"),
        "expert_group_used_count": c.get("topk_group"),
        "expert_weights_scale": first(c, "routed_scaling_factor", "route_scale"),
        "expert_weights_norm": first(c, "norm_topk_prob", default=True),
        "expert_shared_count": first(c, "n_shared_experts", "num_shared_experts"),
        "leading_dense_block_count": first(c, "first_k_dense_replace", "num_dense_layers"),
    }


def windows(c: Config) -> dict[str, Any]:
    """A window, and which layers have it."""
    return {
        **rope(c),
        "attention.sliding_window": c.get("sliding_window"),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in c["layer_types"]],
    }


def glm_qkv(c: Config) -> dict[str, Any]:
    return {**rope(c), "attention.layer_norm_rms_epsilon": c["rms_norm_eps"]}


def gpt_oss(name: str, x: Array, c: Config) -> Named:
    """Gates and ups, which are published in turn, apart; weights as `[experts, out, in]`."""
    before, found, part = name.partition(".experts.")
    if not found:
        yield name, x
        return
    ending = ".bias" if part.endswith("_bias") else ".weight"
    x = x if ending == ".bias" else np.ascontiguousarray(x.swapaxes(1, 2))
    if part.startswith("down"):
        yield f"{before}.mlp.experts.down_proj{ending}".replace(".mlp.mlp.", ".mlp."), x
        return
    for index, which in enumerate(("gate", "up")):
        own = np.ascontiguousarray(x[:, index::2])
        yield f"{before}.mlp.experts.{which}_proj{ending}".replace(".mlp.mlp.", ".mlp."), own


def split_experts(name: str, x: Array, c: Config) -> Named:
    """Stacks of gates and ups together, apart. Qwen3-VL's are published as `[experts, in, out]`."""
    turned = c["model_type"] == "qwen3_vl_moe_text"
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(x.swapaxes(1, 2) if turned else x, 2, axis=1)
        yield name.replace("gate_up_proj", "gate_proj.weight"), np.ascontiguousarray(gate)
        yield name.replace("gate_up_proj", "up_proj.weight"), np.ascontiguousarray(up)
    elif name.endswith("experts.down_proj"):
        yield name + ".weight", np.ascontiguousarray(x.swapaxes(1, 2)) if turned else x
    else:
        yield name, x


def _by_turns(x: Array, c: Config, dim: int, axis: int = 0) -> Array:
    """Heads of values, which lie by key head, with the key heads in turn."""
    keys = c["linear_num_key_heads"]
    shape = (*x.shape[:axis], keys, c["linear_num_value_heads"] // keys, dim, *x.shape[axis + 1 :])
    return np.ascontiguousarray(x.reshape(shape).swapaxes(axis, axis + 1).reshape(x.shape))


def qwen35(name: str, x: Array, c: Config) -> Named:
    values = c["linear_value_head_dim"]
    if name.endswith(("layernorm.weight", "model.norm.weight", "_norm.weight")):
        x = x + 1
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_proj.bias")):
        x = _by_turns(x, c, 1)
    elif name.endswith("in_proj_z.weight"):
        x = _by_turns(x, c, values)
    elif name.endswith("linear_attn.out_proj.weight"):
        x = _by_turns(x, c, values, axis=1)
    elif name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        first_value = 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
        x = np.concatenate([x[:first_value], _by_turns(x[first_value:], c, values)])
    yield from split_experts(name, x, c)


def qwen3_next(name: str, x: Array, c: Config) -> Named:
    if name.endswith(("layernorm.weight", "model.norm.weight", "_norm.weight")):
        x = x + 1
    if not name.endswith("in_proj_qkvz.weight"):
        yield name, x
        return
    keys, key_dim = c["linear_num_key_heads"], c["linear_key_head_dim"]
    each = c["linear_num_value_heads"] // keys * c["linear_value_head_dim"]
    parts = np.split(x.reshape(keys, -1, x.shape[-1]), np.cumsum([key_dim, key_dim, each]), axis=1)
    q, k, v, z = (part.reshape(-1, x.shape[-1]) for part in parts)
    yield name.replace("qkvz", "qkv"), np.concatenate([q, k, v])
    yield name.replace("qkvz", "z"), z


def layer_kinds(c: Config) -> list[str]:
    every = c.get("full_attention_interval", 4)
    by_count = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(c["num_hidden_layers"])]
    return c.get("layer_types") or by_count


def delta(c: Config) -> dict[str, Any]:
    heads, values = c["linear_num_value_heads"], c["linear_value_head_dim"]
    return {
        **rope(c),
        "rope.dimension_count": int(c["head_dim"] * (c.get("rope_parameters") or c)["partial_rotary_factor"]),
        "attention.recurrent_layers": [kind == "linear_attention" for kind in layer_kinds(c)],
        "ssm.conv_kernel": c["linear_conv_kernel_dim"],
        "ssm.state_size": c["linear_key_head_dim"],
        "ssm.group_count": c["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * values,
    }


def latent(name: str, x: Array, c: Config) -> Named:
    """Keys and values of latents, by head, in two stacks."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, x
        return
    keys, values = np.split(x.reshape(c["num_attention_heads"], -1, x.shape[-1]), [c["qk_nope_head_dim"]], axis=1)
    yield name.replace("kv_b", "k_b"), np.ascontiguousarray(keys.swapaxes(1, 2))
    yield name.replace("kv_b", "v_b"), np.ascontiguousarray(values)


def latent_sizes(c: Config) -> dict[str, Any]:
    said = c.get("rope_scaling") or {}
    return {
        **experts(c),
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c.get("q_lora_rank"),
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["kv_lora_rank"] + c["qk_rope_head_dim"],
        "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla": c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length_mla": c["v_head_dim"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "rope.scaling.yarn_log_multiplier": 0.1 * said["mscale_all_dim"] if "mscale_all_dim" in said else None,
    }


def mistral4(name: str, x: Array, c: Config) -> Named:
    stacked = name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    yield from latent(f"{name}.weight" if stacked else name, x, c)


def mistral4_sizes(c: Config) -> dict[str, Any]:
    said = c["rope_parameters"]
    own = {
        "attention.temperature_scale": said["llama_4_scaling_beta"],
        "attention.temperature_length": said["original_max_position_embeddings"],
        "rope.scaling.yarn_log_multiplier": 0.1 * said["mscale_all_dim"],
    }
    return {**latent_sizes(c), **own, "expert_gating_func": None}


def kimi(name: str, x: Array, c: Config) -> Named:
    if name.endswith("conv1d.weight"):
        x = x[None, :, None]
    if ".layers.0.block_sparse_moe." in name:  # as published: the first feed-forward is no part of experts
        name = name.replace("block_sparse_moe", "mlp")
    yield from latent(name, x.reshape(1, 1, -1, 1) if name.endswith("A_log") else x, c)


def kimi_sizes(c: Config) -> dict[str, Any]:
    own = c["linear_attn_config"]
    return {
        **latent_sizes(c),
        "attention.head_count_kv": [int(i + 1 in own["full_attn_layers"]) for i in range(c["num_hidden_layers"])],
        "expert_used_count": c["num_experts_per_token"],
        "expert_group_count": c["num_expert_group"],
        "kda.head_dim": own["head_dim"],
        "ssm.conv_kernel": own["short_conv_kernel_size"],
    }


def lfm2_experts(name: str, x: Array, c: Config) -> Named:
    yield name.replace(".feed_forward.experts.", ".block_sparse_moe.experts."), x


def lfm2(c: Config) -> dict[str, Any]:
    """The feed-forward's size is the one that it is adjusted to."""
    kinds = c.get("layer_types") or [
        "full_attention" if i in c["full_attn_idxs"] else "conv" for i in range(c["num_hidden_layers"])
    ]
    size = first(c, "block_ff_dim", "intermediate_size")
    if c.get("block_auto_adjust_ff_dim"):
        size, grain = int(c["block_ffn_dim_multiplier"] * int(2 * size / 3)), c["block_multiple_of"]
        size = -(-size // grain) * grain
    return {
        **experts(c),
        "feed_forward_length": size,
        "attention.head_count_kv": [c["num_key_value_heads"] * (kind == "full_attention") for kind in kinds],
        "attention.layer_norm_rms_epsilon": c["norm_eps"],
        "attention.layer_norm_epsilon": None,
        "shortconv.l_cache": c["conv_L_cache"],
    }


TODAY: dict[str, Kind] = {
    "AfmoeForCausalLM": Kind("afmoe", usual, lambda c: {**experts(c), "attention.sliding_window": c["sliding_window"]}),
    "ArceeForCausalLM": Kind("arcee", changed(permuted), rope),
    "Cohere2ForCausalLM": Kind("cohere2", metadata=lambda c: {"attention.sliding_window": c["sliding_window"]}),
    "DeepseekV3ForCausalLM": Kind("deepseek2", changed(latent), latent_sizes),
    "Dots1ForCausalLM": Kind("dots1", usual, experts),
    "Ernie4_5ForCausalLM": Kind("ernie4_5"),
    "Exaone4ForCausalLM": Kind("exaone4", usual, windows, extra=llama3_factors),
    "Glm4ForCausalLM": Kind("glm4", usual, rope),
    "Glm4MoeForCausalLM": Kind("glm4moe", usual, experts),
    "Glm4MoeLiteForCausalLM": Kind("deepseek2", changed(latent), latent_sizes),
    "GlmForCausalLM": Kind("chatglm", usual, glm_qkv),
    "GptOssForCausalLM": Kind(
        "gpt-oss",
        changed(gpt_oss),
        lambda c: {
            **rope(c),
            "attention.sliding_window": c["sliding_window"],
            "expert_feed_forward_length": c["intermediate_size"],
        },
    ),
    "KimiLinearForCausalLM": Kind("kimi-linear", changed(kimi), kimi_sizes),
    "Lfm2ForCausalLM": Kind("lfm2", usual, lfm2),
    "Lfm2MoeForCausalLM": Kind("lfm2moe", changed(lfm2_experts), lfm2),
    "Mistral4ForCausalLM": Kind("mistral4", changed(mistral4), mistral4_sizes),
    "MiniMaxM2ForCausalLM": Kind(
        "minimax-m2",
        usual,
        lambda c: {
            **experts(c),
            "expert_feed_forward_length": c["intermediate_size"],
            "rope.dimension_count": c["rotary_dim"],
        },
    ),
    "Olmo2ForCausalLM": Kind("olmo2"),
    "Olmo3ForCausalLM": Kind("olmo2", usual, windows),
    "Qwen2_5_VLForConditionalGeneration": Kind("qwen2vl", usual, rope),
    "Qwen3NextForCausalLM": Kind("qwen3next", changed(qwen3_next), delta),
    "Qwen3VLForConditionalGeneration": Kind("qwen3vl", usual, rope),
    "Qwen3VLMoeForConditionalGeneration": Kind("qwen3vlmoe", changed(split_experts), rope),
    "Qwen3_5ForConditionalGeneration": Kind("qwen35", changed(qwen35), delta),
    "Qwen3_5MoeForConditionalGeneration": Kind("qwen35moe", changed(qwen35), delta),
    "SeedOssForCausalLM": Kind("seed_oss"),
    "SmolLM3ForCausalLM": Kind("smollm3", changed(permuted)),
}
CASES = [
    "AfmoeForCausalLM--trinity-nano",
    "ArceeForCausalLM--afm-4.5b",
    "Cohere2ForCausalLM--command-r7b",
    "DeepseekV3ForCausalLM--v3",
    "Dots1ForCausalLM--llm1",
    "Ernie4_5ForCausalLM--0.3b",
    "Exaone4ForCausalLM--32b",
    "Glm4ForCausalLM--4-32b-0414",
    "Glm4MoeForCausalLM--4.5",
    "Glm4MoeLiteForCausalLM--4.7-flash",
    "GlmForCausalLM--4-9b-hf",
    "GptOssForCausalLM--20b-bf16",
    "KimiLinearForCausalLM--48b-a3b",
    "Lfm2ForCausalLM--1.2b",
    "Lfm2ForCausalLM--1.2b-biases",
    "Lfm2MoeForCausalLM--8b-a1b",
    "MiniMaxM2ForCausalLM--m2",
    "Mistral4ForCausalLM--small-4",
    "Olmo2ForCausalLM--7b",
    "Olmo3ForCausalLM--7b",
    "Qwen2_5_VLForConditionalGeneration--7b-text",
    "Qwen3NextForCausalLM--80b-a3b",
    "Qwen3VLForConditionalGeneration--8b-text",
    "Qwen3VLMoeForConditionalGeneration--30b-a3b-text",
    "Qwen3_5ForConditionalGeneration--9b-text",
    "Qwen3_5MoeForConditionalGeneration--35b-a3b-text",
    "Qwen3_5MoeForConditionalGeneration--per-expert-text",
    "SeedOssForCausalLM--36b",
    "SmolLM3ForCausalLM--3b",
]
"""Golden cases that are tried, of models that generate."""
