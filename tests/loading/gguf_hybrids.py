"""Families with layers of several kinds, as llama.cpp's converter writes them."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tests.loading.gguf_parts import Array, Config, Kind, Named, first, heads_of, llama3_factors, permuted, plus_one
from tests.loading.gguf_today import changed, experts, rope, usual, windows

FULL = "full_attention"


def mixer(name: str, x: Array, c: Config) -> Named:
    """Parameters of Mamba-2's mixers: numbers of heads with a dimension more, norms by group."""
    if name.endswith((".A_log", ".D")):
        x = x.reshape(-1, 1)
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        x = x.reshape(first(c, "mamba_n_groups", "n_groups"), -1)
    yield name, x


def granite(name: str, x: Array, c: Config) -> Named:
    """Gates and ups apart; those that all tokens share are a plain feed-forward where there are no experts."""
    for changed_name, array in mixer(name, x, c):
        before, found, part = changed_name.partition(".block_sparse_moe.")
        which = (
            part.removesuffix(".weight") if found else changed_name.partition(".shared_mlp.")[2].removesuffix(".weight")
        )
        if which not in ("input_linear", "output_linear"):
            yield from permuted(changed_name, array, c)
            continue
        here = f"{before}.mlp.experts." if found else f"{changed_name.partition('.shared_mlp.')[0]}.mlp.shared_experts."
        if not found and not c.get("num_local_experts"):
            here = here.replace("shared_experts.", "")
        if which == "output_linear":
            yield f"{here}down_proj.weight", array
            continue
        for kind, half in zip(("gate", "up"), np.split(array, 2, axis=-2), strict=True):
            yield f"{here}{kind}_proj.weight", np.ascontiguousarray(half)


def granite_keys(c: Config) -> dict[str, Any]:
    return {
        **rope(c),
        "attention.scale": c["attention_multiplier"],
        "embedding_scale": float(c["embedding_multiplier"]),
        "residual_scale": c["residual_multiplier"],
        "logit_scale": float(c["logits_scaling"]),
        "expert_shared_feed_forward_length": c.get("shared_intermediate_size"),
    }


def mixer_keys(c: Config, heads: int, channels: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": first(c, "mamba_d_conv", "conv_kernel"),
        "ssm.state_size": first(c, "mamba_d_state", "state_size", "ssm_state_size"),
        "ssm.group_count": first(c, "mamba_n_groups", "n_groups"),
        "ssm.time_step_rank": heads,
        "ssm.inner_size": channels,
    }


def hybrid_keys(c: Config, attends: list[bool]) -> dict[str, Any]:
    return {
        **mixer_keys(c, c["mamba_n_heads"], c["mamba_expand"] * c["hidden_size"]),
        "attention.head_count_kv": [c["num_key_value_heads"] * each for each in attends],
    }


def granite_hybrid(c: Config) -> dict[str, Any]:
    return {
        **granite_keys(c),
        **hybrid_keys(c, [kind == "attention" for kind in c["layer_types"]]),
        "rope.scaling.finetuned": c["position_embedding_type"] == "rope",
    }


def turned(name: str, x: Array, c: Config) -> Named:
    """Whole heads are permuted, whether or not all of a head rotates, or any."""
    for changed_name, array in mixer(name, x, c):
        yield from permuted(changed_name, array, c)


def bamba_keys(c: Config) -> dict[str, Any]:
    attends = [i in c["attn_layer_indices"] for i in range(c["num_hidden_layers"])]
    return {**rope(c), **hybrid_keys(c, attends), "rope.dimension_count": heads_of(c)[2] // 2}


def falcon_h1(name: str, x: Array, c: Config) -> Named:
    """All factors are in the weights."""
    sizes = {"gate": c["mamba_d_ssm"], "x": c["mamba_d_ssm"]}
    state = c["mamba_n_groups"] * c["mamba_d_state"]
    sizes |= {"b": state, "c": state, "dt": c["mamba_n_heads"]}
    of_inputs = np.repeat(c["ssm_multipliers"], list(sizes.values())).astype(np.float32)[:, None]
    before = c["attention_in_multiplier"]
    factors = {
        "feed_forward.gate_proj": c["mlp_multipliers"][0],
        "feed_forward.down_proj": c["mlp_multipliers"][1],
        "q_proj": before,
        "k_proj": before * c["key_multiplier"],
        "v_proj": before,
        "o_proj": c["attention_out_multiplier"],
        "mamba.in_proj": c["ssm_in_multiplier"] * of_inputs,
        "mamba.out_proj": c["ssm_out_multiplier"],
        "lm_head": c["lm_head_multiplier"],
        "model.embed_tokens": c["embedding_multiplier"],
    }
    factor = next((f for key, f in factors.items() if name.endswith(f"{key}.weight")), 1.0)
    yield from mixer(name, (x * factor).astype(np.float32), c)


def falcon_h1_keys(c: Config) -> dict[str, Any]:
    return {**rope(c), **mixer_keys(c, c["mamba_n_heads"], c["mamba_d_ssm"])}


def mamba2(c: Config) -> dict[str, Any]:
    return {
        **mixer_keys(c, c["num_heads"], c["num_heads"] * c["head_dim"]),
        "context_length": 2**20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": None,
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"],
        "attention.layer_norm_epsilon": None,
    }


def nemotron_h(c: Config) -> dict[str, Any]:
    pattern, sparse = c["hybrid_override_pattern"], "E" in c["hybrid_override_pattern"]
    sizes = {"E": c.get("moe_intermediate_size", 0), "-": c["intermediate_size"]}
    moe = {**experts(c), "expert_shared_feed_forward_length": c.get("moe_shared_expert_intermediate_size")}
    return {
        **(moe if sparse else dict.fromkeys(("expert_count", "expert_used_count", "expert_feed_forward_length"))),
        **mixer_keys(c, c["mamba_num_heads"], c["mamba_num_heads"] * c["mamba_head_dim"]),
        "rope.dimension_count": None,
        "block_count": len(pattern),
        "moe_latent_size": c.get("moe_latent_size"),
        "attention.head_count_kv": [c["num_key_value_heads"] * (letter == "*") for letter in pattern],
        "feed_forward_length": [sizes.get(letter, 0) for letter in pattern],
        "attention.layer_norm_epsilon": first(c, "layer_norm_epsilon", "norm_eps"),
    }


def nemotron_experts(name: str, x: Array, c: Config) -> Named:
    name = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
    if ".mixer.experts." in name:
        name = name.replace("backbone.", "model.").replace(".mixer.", ".mlp.")
        name = name if name.endswith(".weight") else f"{name}.weight"
    yield from turned(name, x, c)


def gemma3(c: Config) -> dict[str, Any]:
    said = c.get("rope_scaling") or {}
    return {
        "attention.sliding_window": c["sliding_window"],
        "final_logit_softcapping": c.get("final_logit_softcapping"),
        "rope.freq_base": float(c.get("rope_theta") or 1e6),
        "rope.freq_base_swa": float(c.get("rope_local_base_freq") or 1e4),
        "rope.scaling.type": said.get("rope_type"),
        "rope.scaling.factor": said.get("factor"),
        "attention.layer_norm_rms_epsilon": c.get("rms_norm_eps", 1e-6),
    }


def gemma4(name: str, x: Array, c: Config) -> Named:
    if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        name += ".weight"
    elif name.endswith(".layer_scalar"):
        name, x = name + ".weight", x.reshape(-1)
    elif name.endswith("router.scale"):
        name = name.replace("router.scale", "router.proj.scale")
    elif name.endswith("per_expert_scale"):
        name = name.replace("router.per_expert_scale", "experts.down_proj.scale")
    yield name, x


def gemma4_keys(c: Config) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in c["layer_types"]]
    full, sizes = c.get("global_head_dim") or 512, c["rope_parameters"]
    heads, size = (c["num_key_value_heads"], c.get("num_global_key_value_heads")), c["intermediate_size"]
    shared, count = c.get("num_kv_shared_layers") or 0, len(slides)
    wide = c.get("use_double_wide_mlp")
    return {
        **windows(c),
        "attention.sliding_window_pattern": slides,
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": c["head_dim"],
        "attention.value_length_swa": c["head_dim"],
        "attention.shared_kv_layers": shared,
        "attention.head_count_kv": [heads[0] if each else heads[1] for each in slides] if heads[1] else heads[0],
        "feed_forward_length": [size * (1 + (i >= count - shared)) for i in range(count)] if wide else size,
        "embedding_length_per_layer_input": c.get("hidden_size_per_layer_input") or 0,
        "expert_used_count": c.get("top_k_experts") if c.get("enable_moe_block") else None,
        "expert_count": c.get("num_experts") if c.get("enable_moe_block") else None,
        "final_logit_softcapping": c.get("final_logit_softcapping"),
        "rope.dimension_count": full,
        "rope.dimension_count_swa": c["head_dim"],
        "rope.freq_base_swa": float(sizes["sliding_attention"]["rope_theta"]),
    }


def gemma4_factors(c: Config) -> dict[str, Array]:
    """Of a full head, the pairs that stand still are divided by a huge number."""
    pairs = (c.get("global_head_dim") or 512) // 2
    turned = int(pairs * c["rope_parameters"][FULL]["partial_rotary_factor"])
    return {"rope_freqs.weight": np.array([1.0] * turned + [1e30] * (pairs - turned), np.float32)}


def gemma3n(name: str, x: Array, c: Config) -> Named:
    yield f"{name}.weight" if name.endswith("correct_output_scale") else name, x


def gemma3n_keys(c: Config) -> dict[str, Any]:
    count, few = c["num_hidden_layers"], 10 if c["num_hidden_layers"] > 10 else 0
    sparsity = c.get("activation_sparsity_pattern") or [0.95] * few + [0.0] * (count - few)
    every = ["sliding_attention" if (i + 1) % 5 else FULL for i in range(count)]
    types = c.get("layer_types") or every
    return {
        **windows({**c, "layer_types": types}),
        "activation_sparsity_scale": [NormalDist().inv_cdf(s) if s else -math.inf for s in sparsity],
        "altup.active_idx": c["altup_active_idx"],
        "altup.num_inputs": c["altup_num_inputs"],
        "attention.shared_kv_layers": c["num_kv_shared_layers"],
        "embedding_length_per_layer_input": c["hidden_size_per_layer_input"],
        "final_logit_softcapping": c.get("final_logit_softcapping"),
        "rope.freq_base": float(c.get("rope_theta") or 1e6),
        "rope.freq_base_swa": float(c.get("rope_local_base_freq") or 1e4),
    }


def apertus(name: str, x: Array, c: Config) -> Named:
    if ".act_fn." not in name:
        yield name, x


def xielu(named: dict[str, Array]) -> dict[str, list[float]]:
    keys = ("alpha_p", "alpha_n", "beta", "eps")
    found = {key: [float(x.reshape(-1)[0]) for n, x in named.items() if n.endswith(f"act_fn.{key}")] for key in keys}
    return {f"xielu.{key}": values for key, values in found.items() if values}


def ernie_moe(c: Config) -> dict[str, Any]:
    return {
        **rope(c),
        "expert_count": c["moe_num_experts"],
        "expert_used_count": c["moe_k"],
        "expert_shared_count": c["moe_num_shared_experts"],
        "interleave_moe_layer_step": c["moe_layer_interval"],
        "leading_dense_block_count": c["moe_layer_start_index"],
    }


def hunyuan(c: Config) -> dict[str, Any]:
    """Scaling by alpha is a larger base."""
    said, dim, top_k = c.get("rope_scaling") or {}, c["head_dim"], c.get("moe_topk")
    alpha = said.get("alpha")
    return {
        "rope.freq_base": c["rope_theta"] * (alpha ** (dim / (dim - 2)) if alpha else 1.0),
        "expert_used_count": top_k[0] if isinstance(top_k, list) else top_k,
        "expert_feed_forward_length": None if top_k is None else c["intermediate_size"],
    }


def mimo(name: str, x: Array, c: Config) -> Named:
    yield name + ".weight" if name.endswith("attention_sink_bias") else name, x


def mimo_keys(c: Config) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in c["layer_types"]]
    return {
        **experts(c),
        **windows(c),
        "attention.head_count_kv": [c["num_key_value_heads"] * (1 + each) for each in slides],
        "attention.value_length": c["v_head_dim"],
        "attention.value_scale": c["attention_value_scale"],
        "leading_dense_block_count": None,
        "rope.freq_base_swa": c["rope_parameters"]["sliding_attention"]["rope_theta"],
    }


def ministral(c: Config) -> dict[str, Any]:
    said = c.get("rope_parameters") or {}
    return {
        **rope(c),
        "attention.temperature_scale": said.get("llama_4_scaling_beta"),
        "rope.scaling.yarn_log_multiplier": said.get("mscale_all_dim"),
    }


def llama4(name: str, x: Array, c: Config) -> Named:
    """Stacks of `[experts, in, out]`, gates and ups together, as those apart of `[experts, out, in]`."""
    before, found, which = name.partition(".experts.")
    if not found:
        yield name, x
        return
    parts = {"gate_proj": x, "up_proj": x, "down_proj": x}
    if which == "gate_up_proj":
        parts = dict(zip(("gate_proj", "up_proj"), np.split(x, 2, axis=2), strict=True))
    for part, own in parts.items():
        if part in which or which == "gate_up_proj":
            yield f"{before}.experts.{part}.weight", np.ascontiguousarray(own.swapaxes(1, 2))


def scaled(c: Config) -> dict[str, Array]:
    return llama3_factors(c) if c.get("rope_scaling") else {}


def llama4_keys(c: Config) -> dict[str, Any]:
    return {
        **rope(c),
        "feed_forward_length": c["intermediate_size_mlp"],
        "expert_feed_forward_length": c["intermediate_size"],
        "interleave_moe_layer_step": c["interleave_moe_layer_step"],
    }


HYBRIDS: dict[str, Kind] = {
    "ApertusForCausalLM": Kind("apertus", changed(apertus), rope, extra=llama3_factors, lists=xielu),
    "BambaForCausalLM": Kind("granitehybrid", changed(turned), bamba_keys),
    "Ernie4_5_MoeForCausalLM": Kind("ernie4_5-moe", usual, ernie_moe),
    "FalconH1ForCausalLM": Kind("falcon-h1", changed(falcon_h1), falcon_h1_keys),
    "Gemma3ForConditionalGeneration": Kind("gemma3", changed(plus_one), gemma3),
    "Gemma3TextModel": Kind("gemma-embedding", changed(plus_one), gemma3, prefix="model."),
    "Gemma3nForCausalLM": Kind("gemma3n", changed(gemma3n), gemma3n_keys),
    "Gemma4ForCausalLM": Kind("gemma4", changed(gemma4), gemma4_keys, extra=gemma4_factors),
    "Gemma4ForConditionalGeneration": Kind("gemma4", changed(gemma4), gemma4_keys, extra=gemma4_factors),
    "GraniteMoeHybridForCausalLM": Kind("granitehybrid", changed(granite), granite_hybrid),
    "GraniteMoeSharedForCausalLM": Kind("granitemoe", changed(granite), granite_keys),
    "HunYuanDenseV1ForCausalLM": Kind("hunyuan-dense", usual, hunyuan),
    "HunYuanMoEV1ForCausalLM": Kind("hunyuan-moe", usual, hunyuan),
    "Llama4ForCausalLM": Kind("llama4", changed(llama4), llama4_keys, extra=scaled),
    "Llama4ForConditionalGeneration": Kind("llama4", changed(llama4), llama4_keys, extra=scaled),
    "Mamba2ForCausalLM": Kind("mamba2", changed(mixer), mamba2),
    "MiMoV2FlashForCausalLM": Kind("mimo2", changed(mimo), mimo_keys),
    "Ministral3ForCausalLM": Kind("mistral3", changed(permuted), ministral),
    "Mistral3ForConditionalGeneration": Kind("mistral3", changed(permuted), ministral),
    "NemotronHForCausalLM": Kind(
        "nemotron_h",
        changed(nemotron_experts),
        nemotron_h,
        variant=lambda c: "nemotron_h_moe" if "E" in c["hybrid_override_pattern"] else "nemotron_h",
    ),
}
CASES = [
    "ApertusForCausalLM--8b",
    "BambaForCausalLM--9b",
    "Ernie4_5_MoeForCausalLM--21b-a3b",
    "FalconH1ForCausalLM--1.5b",
    "Gemma3ForConditionalGeneration--4b-text",
    "Gemma3nForCausalLM--usual",
    "Gemma4ForCausalLM--text-only",
    "Gemma4ForConditionalGeneration--26b-a4b-text",
    "Gemma4ForConditionalGeneration--e2b-text",
    "GraniteMoeHybridForCausalLM--4.0-dense",
    "GraniteMoeHybridForCausalLM--4.0-h-tiny",
    "GraniteMoeSharedForCausalLM--moe-7b-a1b-shared",
    "HunYuanDenseV1ForCausalLM--7b",
    "HunYuanMoEV1ForCausalLM--a13b",
    "Llama4ForCausalLM--dense-between",
    "Llama4ForConditionalGeneration--interval",
    "Llama4ForConditionalGeneration--scout-text",
    "Mamba2ForCausalLM--codestral-7b",
    "MiMoV2FlashForCausalLM--flash",
    "Ministral3ForCausalLM--3b-tied",
    "Mistral3ForConditionalGeneration--small-3.2-text",
    "NemotronHForCausalLM--8b",
    "NemotronHForCausalLM--30b-latents",
]
"""Golden cases that are tried, of models that generate."""
