"""Golden cases written as llama.cpp's converter writes them: its names, its metadata, its changes to tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.golden import tensors

Array = np.ndarray


def permute(weight: Array, heads: int) -> Array:
    """llama.cpp's order of a head's rows, pairs side by side."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _llama_metadata(w: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    heads = c["num_attention_heads"]
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(c.get("num_key_value_heads", heads))
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c.get("rope_theta", 10000.0))
    if c.get("sliding_window") and c["model_type"] == "gemma2":
        w.add_sliding_window(c["sliding_window"])
    if c.get("head_dim"):
        w.add_key_length(c["head_dim"])
        w.add_value_length(c["head_dim"])
    if c.get("attn_logit_softcapping"):
        w.add_attn_logit_softcapping(c["attn_logit_softcapping"])
        w.add_final_logit_softcapping(c["final_logit_softcapping"])
    if c.get("num_local_experts"):
        w.add_expert_count(c["num_local_experts"])
        w.add_expert_used_count(c["num_experts_per_tok"])


def _gpt2_metadata(w: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    w.add_block_count(c["n_layer"])
    w.add_context_length(c["n_positions"])
    w.add_embedding_length(c["n_embd"])
    w.add_feed_forward_length(4 * c["n_embd"])
    w.add_head_count(c["n_head"])
    w.add_layer_norm_eps(c["layer_norm_epsilon"])


def _mamba_metadata(w: gguf.GGUFWriter, c: dict[str, Any]) -> None:
    w.add_context_length(2**20)
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(0)
    w.add_head_count(0)
    w.add_block_count(c["num_hidden_layers"])
    w.add_ssm_conv_kernel(c["conv_kernel"])
    w.add_ssm_inner_size(c["intermediate_size"])
    w.add_ssm_state_size(c["state_size"])
    w.add_ssm_time_step_rank(c["time_step_rank"])
    w.add_layer_norm_rms_eps(c["layer_norm_epsilon"])


def _llama_tensor(name: str, x: Array, c: dict[str, Any]) -> Array:
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return permute(x, c["num_attention_heads"])
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return permute(x, c.get("num_key_value_heads", c["num_attention_heads"]))
    return x


def _gpt2_tensor(name: str, x: Array, c: dict[str, Any]) -> Array:
    conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return np.ascontiguousarray(x.T) if conv1d else x


def _gemma_tensor(name: str, x: Array, c: dict[str, Any]) -> Array:
    return x + 1 if name.endswith("norm.weight") else x


def _mamba_tensor(name: str, x: Array, c: dict[str, Any]) -> Array:
    if name.endswith("A_log"):
        return -np.exp(x)
    return x.squeeze(1) if name.endswith("conv1d.weight") else x


KINDS: dict[str, tuple[str, Callable[..., None], Callable[..., Array]]] = {
    "LlamaForCausalLM": ("llama", _llama_metadata, _llama_tensor),
    "MixtralForCausalLM": ("llama", _llama_metadata, _llama_tensor),
    "Qwen2ForCausalLM": ("qwen2", _llama_metadata, lambda name, x, c: x),
    "Gemma2ForCausalLM": ("gemma2", _llama_metadata, _gemma_tensor),
    "GPT2LMHeadModel": ("gpt2", _gpt2_metadata, _gpt2_tensor),
    "MambaForCausalLM": ("mamba", _mamba_metadata, _mamba_tensor),
}


def write_gguf(case: dict[str, Any], path: Path, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """The case as a GGUF file; matrices quantized to `kind` if given."""
    arch, metadata, change = KINDS[case["row"]]
    config = case["config"]
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer, config)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map({n: k for k, n in gguf.MODEL_ARCH_NAMES.items()}[arch], layers)
    experts: dict[str, dict[int, Array]] = {}
    for name, value in tensors(case).items():
        if name.endswith(("rotary_emb.inv_freq", ".attn.bias")):
            continue
        if arch == "gpt2" and not name.startswith("transformer."):
            name = "transformer." + name
        value = change(name, value, config)
        if ".experts." in name:
            before, _, rest = name.partition(".experts.")
            number, _, which = rest.partition(".")
            experts.setdefault(f"{before}.experts.{which}", {})[int(number)] = value
            continue
        _add(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), value, kind)
    for name, parts in experts.items():
        stacked = np.stack([parts[i] for i in range(len(parts))])
        _add(writer, names.get_name(name, try_suffixes=(".weight",)), stacked, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str | None, value: Array, kind: gguf.GGMLQuantizationType | None) -> None:
    assert name is not None
    if kind is not None and value.ndim >= 2 and value.shape[-1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, value)
