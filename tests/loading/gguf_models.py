"""Golden cases written as llama.cpp's converter writes them: its names, its metadata, its changes to tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from octavo.loading.formats.gguf import name_map
from tests.golden import tensors

Array = np.ndarray
Config = dict[str, Any]
Named = Iterator[tuple[str, Array]]


def first(c: Config, *keys: str, default: Any = None) -> Any:
    return next((c[k] for k in keys if c.get(k) is not None), default)


def heads_of(c: Config) -> tuple[int, int, int]:
    """Heads, key heads, and the width of a head."""
    heads = first(c, "num_attention_heads", "n_head", "n_heads")
    settings, width = c.get("attn_config") or {}, first(c, "hidden_size", "n_embd", "d_model", "n_embed")
    keys = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads")
    kv_heads = first(c, *keys, default=settings.get("kv_n_heads"))
    return heads, kv_heads or heads, width // heads if heads else 0


def shared_metadata(c: Config) -> dict[str, Any]:
    """What the converter writes of most models."""
    heads, kv_heads, _ = heads_of(c)
    width = first(c, "hidden_size", "n_embd", "d_model", "n_embed")
    length = first(c, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    return {
        "block_count": first(c, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "context_length": length or 256,
        "embedding_length": width,
        "feed_forward_length": first(c, "intermediate_size", "ffn_hidden_size", "n_inner", default=4 * width),
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": c.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": first(c, "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
        "rope.freq_base": float(first(c, "rope_theta", "rotary_emb_base", default=10000.0)),
        "attention.key_length": c.get("head_dim"),
        "attention.value_length": c.get("head_dim"),
        "attention.clamp_kqv": c.get("clip_qkv"),
        "logit_scale": c.get("logit_scale"),
        "expert_count": first(c, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": c.get("num_experts_per_tok"),
        "expert_feed_forward_length": c.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": c.get("shared_expert_intermediate_size"),
        "expert_shared_count": c.get("n_shared_experts"),
        "leading_dense_block_count": c.get("first_k_dense_replace"),
    }


def rope_dimensions(*keys: str) -> Callable[[Config], dict[str, Any]]:
    """How many values of a head turn, from the config's share."""
    return lambda c: {"rope.dimension_count": int(first(c, *keys) * heads_of(c)[2])}


def permute(weight: Array, pairs: int) -> Array:
    """llama.cpp's order of a head's rows, pairs side by side."""
    return weight.reshape(-1, 2, pairs, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def as_is(name: str, x: Array, c: Config) -> Named:
    yield name, x


def permuted(name: str, x: Array, c: Config) -> Named:
    if name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        x = permute(x, first(c, "head_dim", default=heads_of(c)[2]) // 2)
    yield name, x


def split_qkv(name: str, x: Array, c: Config) -> Named:
    """Fused q, k, v as three, q and k permuted: Baichuan's one after the other, InternLM2's by key head."""
    heads, kv_heads, dim = heads_of(c)
    if "W_pack" in name:
        q, k, v = np.split(x, 3)
    elif "wqkv" in name:
        groups = x.reshape(kv_heads, heads // kv_heads + 2, dim, -1)
        q, k, v = (part.reshape(-1, x.shape[1]) for part in (groups[:, :-2], groups[:, -2], groups[:, -1]))
    else:
        yield name, x
        return
    before = name.partition(".attention.wqkv" if "wqkv" in name else ".self_attn.W_pack")[0]
    for letter, part in (("q", permute(q, dim // 2)), ("k", permute(k, dim // 2)), ("v", v)):
        yield f"{before}.self_attn.{letter}_proj.weight", part


def grouped(name: str, x: Array, c: Config) -> Named:
    """Fused q, k, v by head as all of q, all of k, all of v."""
    if "query_key_value" in name:
        heads, kv_heads, dim = heads_of(c)
        if c["model_type"] == "falcon" and c.get("multi_query") and not c.get("new_decoder_architecture"):
            kv_heads = 1
        groups = x.reshape(kv_heads, heads // kv_heads + 2, dim, *x.shape[1:])
        x = np.concatenate([p.reshape(-1, *x.shape[1:]) for p in (groups[:, :-2], groups[:, -2], groups[:, -1])])
    yield name, x


def transposed(name: str, x: Array, c: Config) -> Named:
    linear = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight", "c_fc2.weight"))
    yield name, np.ascontiguousarray(x.T) if linear else x


def jais(name: str, x: Array, c: Config) -> Named:
    if "relative_pe" in name:
        return
    if "wte" in name:
        x = x * first(c, "mup_embeddings_scale", "embeddings_scale", default=1.0)
        yield "lm_head.weight", tensors_head(x, c)
    yield from transposed(name, x, c)


def tensors_head(scaled: Array, c: Config) -> Array:
    """Jais' tied head: the table with the logits' scale, of which the embeddings' is not a part."""
    scale = c.get("mup_output_alpha", 1.0) * first(c, "mup_width_scale", "width_scale", default=1.0)
    return scaled / first(c, "mup_embeddings_scale", "embeddings_scale", default=1.0) * scale


def plus_one(name: str, x: Array, c: Config) -> Named:
    yield name, x + 1 if name.endswith("norm.weight") else x


def ssm(name: str, x: Array, c: Config) -> Named:
    if name.endswith("A_log"):
        x = -np.exp(x)
    yield name, x.squeeze(1) if name.endswith("conv1d.weight") else x


def dbrx(name: str, x: Array, c: Config) -> Named:
    if ".experts." in name:
        x = x.reshape(c["ffn_config"]["moe_num_experts"], -1, c["d_model"])
        yield name + ".weight", np.ascontiguousarray(x.swapaxes(1, 2)) if name.endswith("w2") else x
    else:
        yield name, x


def granite_moe(name: str, x: Array, c: Config) -> Named:
    if name.endswith("input_linear.weight"):
        gate, up = np.split(x, 2, axis=1)
        base = name.removesuffix("input_linear.weight") + "experts."
        yield base + "w1.weight", np.ascontiguousarray(gate)
        yield base + "w3.weight", np.ascontiguousarray(up)
    elif name.endswith("output_linear.weight"):
        yield name.removesuffix("output_linear.weight") + "experts.w2.weight", x
    else:
        yield from permuted(name, x, c)


def without_prefix(name: str, x: Array, c: Config) -> Named:
    if not name.endswith("inv_freq"):
        yield name.removeprefix("transformer."), x


@dataclass
class Kind:
    """How llama.cpp has an architecture."""

    arch: str
    change: Callable[[str, Array, Config], Named] = as_is
    metadata: Callable[[Config], dict[str, Any]] = lambda c: {}
    prefix: str = ""
    """What some checkpoints leave out of their names, and the map of names wants."""
    extra: Callable[[Config], dict[str, Array]] = field(default=lambda c: {})


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


def llama3_factors(c: Config) -> dict[str, Array]:
    """What divides each pair's angle under Llama 3's scaling."""
    scaling, pairs = c["rope_scaling"], heads_of(c)[2] // 2
    length = 2 * np.pi * c["rope_theta"] ** (np.arange(pairs) / pairs)
    low, high = (scaling[f"{end}_freq_factor"] for end in ("low", "high"))
    share = np.clip((scaling["original_max_position_embeddings"] / length - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)}


def _gemma(c: Config) -> dict[str, Any]:
    return {
        "attention.sliding_window": c.get("sliding_window") if c["model_type"] == "gemma2" else None,
        "attn_logit_softcapping": c.get("attn_logit_softcapping"),
        "final_logit_softcapping": c.get("final_logit_softcapping"),
    }


KINDS: dict[str, Kind] = {
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
SUFFIXES = (".weight", ".bias")
BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "future_mask")


def write_gguf(
    case: dict[str, Any],
    path: Path,
    kind: gguf.GGMLQuantizationType | None = None,
    arrays: dict[str, Array] | None = None,
    tokens: dict[str, gguf.TokenType] | None = None,
) -> Path:
    """The case as a GGUF file, or with these tensors; matrices quantized to `kind` if given; with these tokens."""
    of, config = KINDS[case["row"]], case["config"]
    writer = gguf.GGUFWriter(path, of.arch)
    metadata = {**shared_metadata(config), **of.metadata(config)}
    for key, value in metadata.items():
        if value is not None:
            _add_value(writer, f"{of.arch}.{key}", value)
    if tokens is not None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(tokens))
        writer.add_token_types(list(tokens.values()))
    names = name_map(of.arch, metadata["block_count"])
    stacks: dict[str, dict[int, Array]] = {}
    for name, value in (tensors(case) if arrays is None else arrays).items():
        if name.endswith(BUFFERS):
            continue
        if of.prefix and not name.startswith((of.prefix, "lm_head")):
            name = of.prefix + name
        for changed, array in of.change(name, value, config):
            for marker in (".experts.", "_layernorm.norms."):
                before, found, rest = changed.partition(marker)
                number, _, which = rest.partition(".")
                if found and number.isdigit():
                    stacks.setdefault(f"{before}{marker.removesuffix('norms.')}{which}", {})[int(number)] = array
                    break
            else:
                known = names.get_name(changed, SUFFIXES) or names.get_name(changed.removeprefix(of.prefix), SUFFIXES)
                _add(writer, known, array, kind, changed)
    for name, parts in stacks.items():
        stacked = np.stack([parts[i] for i in range(len(parts))])
        _add(writer, names.get_name(name, SUFFIXES), stacked, kind, name)
    for name, array in of.extra(config).items():
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


def _add(
    writer: gguf.GGUFWriter, name: str | None, value: Array, kind: gguf.GGMLQuantizationType | None, published: str
) -> None:
    assert name is not None, published
    if kind is not None and value.ndim >= 2 and value.shape[-1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(value))
