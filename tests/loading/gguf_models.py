"""Golden cases written as llama.cpp's converter writes them: its names, its metadata, its changes to tensors."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from octavo.loading.formats.gguf import name_map
from tests.golden import tensors
from tests.loading.gguf_encoders import ENCODERS, POOLING
from tests.loading.gguf_hybrids import HYBRIDS
from tests.loading.gguf_parts import (
    Array,
    Config,
    Kind,
    as_is,
    dbrx,
    granite_moe,
    grouped,
    heads_of,
    jais,
    llama3_factors,
    permuted,
    plus_one,
    rope_dimensions,
    shared_metadata,
    split_qkv,
    ssm,
    transposed,
    without_prefix,
)
from tests.loading.gguf_today import TODAY


def _granite(c: Config) -> dict[str, Any]:
    return {
        "attention.scale": c["attention_multiplier"],
        "embedding_scale": c["embedding_multiplier"],
        "residual_scale": c["residual_multiplier"],
        "logit_scale": c["logits_scaling"],
    }


def _mamba(c: Config) -> dict[str, Any]:
    return {
        "context_length": 2**20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": None,
        "ssm.conv_kernel": c["conv_kernel"],
        "ssm.inner_size": c["intermediate_size"],
        "ssm.state_size": c["state_size"],
        "ssm.time_step_rank": c["time_step_rank"],
        "ssm.dt_b_c_rms": c["model_type"] == "falcon_mamba",
        "attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"],
        "attention.layer_norm_epsilon": None,
    }


def _jamba(c: Config) -> dict[str, Any]:
    layers, period, offset = range(c["num_hidden_layers"]), c["attn_layer_period"], c["attn_layer_offset"]
    return {
        "attention.head_count_kv": [c["num_key_value_heads"] if i % period == offset else 0 for i in layers],
        "ssm.conv_kernel": c["mamba_d_conv"],
        "ssm.inner_size": c["mamba_expand"] * c["hidden_size"],
        "ssm.state_size": c["mamba_d_state"],
        "ssm.time_step_rank": c["mamba_dt_rank"],
    }


def _latent(c: Config) -> dict[str, Any]:
    scaling = c.get("rope_scaling") or {}
    yarn = scaling.get("type") == "yarn"
    return {
        "attention.q_lora_rank": c.get("q_lora_rank"),
        "attention.kv_lora_rank": c["kv_lora_rank"],
        "attention.key_length": c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length": c.get("v_head_dim"),
        "rope.dimension_count": c["qk_rope_head_dim"],
        "expert_weights_scale": c.get("routed_scaling_factor"),
        "rope.scaling.type": "yarn" if yarn else None,
        "rope.scaling.factor": float(scaling["factor"]) if yarn else None,
        "rope.scaling.original_context_length": scaling.get("original_max_position_embeddings") if yarn else None,
        "rope.scaling.yarn_log_multiplier": 0.1 * scaling["mscale_all_dim"] if yarn else None,
    }


def _mpt(c: Config) -> dict[str, Any]:
    settings = c["attn_config"]
    return {
        "attention.layer_norm_epsilon": 1e-5,
        "attention.clamp_kqv": settings.get("clip_qkv"),
        "attention.max_alibi_bias": float(settings["alibi_bias_max"]) if settings.get("alibi") else 0.0,
    }


def _dbrx(c: Config) -> dict[str, Any]:
    experts, settings = c["ffn_config"], c["attn_config"]
    return {
        "feed_forward_length": experts["ffn_hidden_size"],
        "rope.freq_base": float(settings["rope_theta"]),
        "attention.clamp_kqv": settings["clip_qkv"],
        "expert_count": experts["moe_num_experts"],
        "expert_used_count": experts["moe_top_k"],
        "attention.layer_norm_epsilon": 1e-5,
    }


def _minicpm(c: Config) -> dict[str, Any]:
    return {
        "embedding_scale": float(c["scale_emb"]),
        "residual_scale": c["scale_depth"] / c["num_hidden_layers"] ** 0.5,
        "logit_scale": c["hidden_size"] / c["dim_model_base"],
    }


def _deci(c: Config) -> dict[str, Any]:
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads_per_layer"]
    return {"attention.head_count": [heads for _ in kv_heads], "attention.head_count_kv": kv_heads}


def _phi3(c: Config) -> dict[str, Any]:
    length, original = c["max_position_embeddings"], c["original_max_position_embeddings"]
    factor = np.sqrt(1 + np.log(length / original) / np.log(original)) if c.get("rope_scaling") else None
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": None if factor is None else float(factor),
        "attention.sliding_window": c.get("sliding_window"),
    }


def _rope_factors(c: Config) -> dict[str, Array]:
    scaling = c.get("rope_scaling") or {}
    kinds = {"short": "short_factor", "long": "long_factor"}
    return {
        f"rope_factors_{kind}.weight": np.array(scaling[key], np.float32)
        for kind, key in kinds.items()
        if key in scaling
    }


def _gemma(c: Config) -> dict[str, Any]:
    return {
        "attention.sliding_window": c.get("sliding_window") if c["model_type"] == "gemma2" else None,
        "attn_logit_softcapping": c.get("attn_logit_softcapping"),
        "final_logit_softcapping": c.get("final_logit_softcapping"),
    }


KINDS: dict[str, Kind] = {
    **TODAY,
    **HYBRIDS,
    **ENCODERS,
    "ArcticForCausalLM": Kind("arctic", permuted),
    "BaiChuanForCausalLM": Kind("baichuan", split_qkv),
    "BaichuanForCausalLM": Kind("baichuan", split_qkv),
    "BloomForCausalLM": Kind("bloom", grouped, prefix="transformer."),
    "ChatGLMModel": Kind(
        "chatglm",
        without_prefix,
        lambda c: {
            "attention.layer_norm_rms_epsilon": c["layernorm_epsilon"],
            "rope.freq_base": 10000.0 * c.get("rope_ratio", 1),
            "rope.dimension_count": c["kv_channels"] // 2,
        },
    ),
    "CohereForCausalLM": Kind("command-r"),
    "DbrxForCausalLM": Kind("dbrx", dbrx, _dbrx),
    "DeciLMForCausalLM": Kind("deci", permuted, _deci),
    "DeepseekForCausalLM": Kind("deepseek", permuted),
    "DeepseekV2ForCausalLM": Kind("deepseek2", as_is, _latent),
    "ExaoneForCausalLM": Kind(
        "exaone",
        metadata=lambda c: {
            "attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"],
            "attention.layer_norm_epsilon": None,
        },
    ),
    "FalconForCausalLM": Kind(
        "falcon",
        grouped,
        lambda c: {"attention.head_count_kv": heads_of(c)[1] if c.get("new_decoder_architecture") else 1},
    ),
    "FalconMambaForCausalLM": Kind("mamba", ssm, _mamba),
    "GPT2LMHeadModel": Kind("gpt2", transposed, prefix="transformer."),
    "GPTBigCodeForCausalLM": Kind("starcoder", metadata=lambda c: {"attention.head_count_kv": 1}),
    "GPTNeoXForCausalLM": Kind(
        "gptneox",
        grouped,
        lambda c: {"use_parallel_residual": c["use_parallel_residual"], **rope_dimensions("rotary_pct")(c)},
    ),
    "GemmaForCausalLM": Kind("gemma", plus_one),
    "Gemma2ForCausalLM": Kind("gemma2", plus_one, _gemma),
    "Gemma3ForCausalLM": Kind("gemma3", plus_one, _gemma),
    "GraniteForCausalLM": Kind("granite", permuted, _granite),
    "GraniteMoeForCausalLM": Kind("granitemoe", granite_moe, _granite),
    "Idefics3ForConditionalGeneration": Kind("llama", permuted, extra=llama3_factors),
    "InternLM2ForCausalLM": Kind("internlm2", split_qkv),
    "JAISLMHeadModel": Kind("jais", jais, lambda c: {"attention.max_alibi_bias": 8.0}),
    "JambaForCausalLM": Kind("jamba", ssm, _jamba),
    "LlamaForCausalLM": Kind("llama", permuted),
    "MPTForCausalLM": Kind("mpt", metadata=_mpt),
    "MambaForCausalLM": Kind("mamba", ssm, _mamba),
    "MiniCPM3ForCausalLM": Kind("minicpm3", metadata=_latent, extra=_rope_factors),
    "MiniCPMForCausalLM": Kind("minicpm", permuted, _minicpm),
    "MixtralForCausalLM": Kind("llama", permuted),
    "NemotronForCausalLM": Kind("nemotron", plus_one, rope_dimensions("partial_rotary_factor")),
    "OlmoForCausalLM": Kind("olmo", permuted, lambda c: {"attention.layer_norm_epsilon": 1e-5}),
    "OlmoeForCausalLM": Kind("olmoe"),
    "OrionForCausalLM": Kind("orion", metadata=lambda c: {"attention.layer_norm_epsilon": c["rms_norm_eps"]}),
    "Phi3ForCausalLM": Kind("phi3", metadata=_phi3, extra=_rope_factors),
    "PhiForCausalLM": Kind("phi2", metadata=rope_dimensions("partial_rotary_factor")),
    "PhiMoEForCausalLM": Kind("phimoe", metadata=lambda c: {"attention.sliding_window": c["sliding_window"]}),
    "QWenLMHeadModel": Kind(
        "qwen",
        metadata=lambda c: {
            "attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"],
            "attention.layer_norm_epsilon": None,
            "attention.head_count_kv": None,
        },
    ),
    "Qwen2ForCausalLM": Kind("qwen2"),
    "Qwen2VLForConditionalGeneration": Kind(
        "qwen2vl", metadata=lambda c: {"rope.dimension_sections": [*c["rope_scaling"]["mrope_section"], 0]}
    ),
    "Qwen2MoeForCausalLM": Kind("qwen2moe"),
    "Qwen3ForCausalLM": Kind("qwen3"),
    "Qwen3MoeForCausalLM": Kind("qwen3moe"),
    "StableLmForCausalLM": Kind("stablelm", metadata=rope_dimensions("partial_rotary_factor", "rope_pct")),
    "Starcoder2ForCausalLM": Kind("starcoder2"),
    "XverseForCausalLM": Kind("xverse", permuted),
}
SUFFIXES = (".weight", ".bias", ".scale")
BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "future_mask")


def write_gguf(
    case: dict[str, Any],
    path: Path,
    kind: gguf.GGMLQuantizationType | None = None,
    arrays: dict[str, Array] | None = None,
    tokens: dict[str, gguf.TokenType] | None = None,
    more: dict[str, Array] | None = None,
    is_fused: bool = False,
    header: dict[str, Any] | None = None,
) -> Path:
    """The case as a GGUF file, or with these tensors; matrices quantized to `kind` if given; with these tokens.

    `more` are tensors beside them, by llama.cpp's names, and `header` more of the metadata. With `is_fused` some are
    one, as newer files may have them.
    """
    of, config = KINDS[case["row"]], {**case["config"], **case["config"].get("text_config", {})}
    arch = of.variant(config) if of.variant else of.arch
    writer = gguf.GGUFWriter(path, arch)
    metadata = {**shared_metadata(config), **of.metadata(config), **(header or {})}
    if pooling := case.get("pooling", {}).get("type"):
        metadata["pooling_type"] = POOLING.get(pooling)
    for key, value in metadata.items():
        if value is not None:
            _add_value(writer, f"{arch}.{key}", value)
    own = tensors(case) if arrays is None else arrays
    for key, values in of.lists(own).items():
        writer.add_array(key, values)
    if tokens is not None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(tokens))
        writer.add_token_types(list(tokens.values()))
    names = name_map(arch, metadata["block_count"])
    stacks: dict[str, dict[int, Array]] = {}
    found: dict[str, Array] = {}
    for name, value in own.items():
        if name.endswith(BUFFERS):
            continue
        if of.prefix and not name.startswith((of.prefix, "lm_head")):
            name = of.prefix + name
        for changed, array in of.change(name, value, config):
            for marker in (".experts.", "_layernorm.norms.", "altup_projections.", "altup_unembed_projections."):
                before, mark, rest = changed.partition(marker)
                number, _, which = rest.partition(".")
                if mark and number.isdigit():
                    stacks.setdefault(f"{before}{marker.removesuffix('norms.')}{which}", {})[int(number)] = array
                    break
            else:
                known = names.get_name(changed, SUFFIXES) or names.get_name(changed.removeprefix(of.prefix), SUFFIXES)
                assert known is not None, changed
                found[known] = array
    for name, parts in stacks.items():
        stacked = np.stack([parts[i] for i in range(len(parts))])
        known = names.get_name(name, SUFFIXES)
        assert known is not None, name
        found[known] = stacked
    for known, array in (fused(found) if is_fused else found).items():
        _add(writer, known, array, kind)
    for name, array in {**of.extra(config), **(more or {})}.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def fused(found: dict[str, Array]) -> dict[str, Array]:
    """With queries, keys and values in one tensor, and with each expert's gates and ups."""
    made = dict(found)
    for first in [name for name in found if name.endswith((".attn_q.weight", ".ffn_gate_exps.weight"))]:
        block, _, which = first.removesuffix(".weight").rpartition(".")
        whole, parts = ("attn_qkv", "qkv") if which == "attn_q" else ("ffn_gate_up_exps", ("gate", "up"))
        names = [f"{block}.attn_{p}.weight" if whole == "attn_qkv" else f"{block}.ffn_{p}_exps.weight" for p in parts]
        made[f"{block}.{whole}.weight"] = np.concatenate([made.pop(name) for name in names], axis=-2)
    return made


def _add(writer: gguf.GGUFWriter, name: str, value: Array, kind: gguf.GGMLQuantizationType | None) -> None:
    if kind is not None and value.ndim >= 2 and value.shape[-1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(value))
