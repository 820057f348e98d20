"""What the tests know of llama.cpp's converter: its keys of metadata, and its changes to tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
Config = dict[str, Any]
Named = Iterator[tuple[str, Array]]


def first(c: Config, *keys: str, default: Any = None) -> Any:
    return next((c[k] for k in keys if c.get(k) is not None), default)


def heads_of(c: Config) -> tuple[int, int, int]:
    """Heads, key heads, and the width of a head."""
    heads = first(c, "num_attention_heads", "n_head", "n_heads")
    settings, width = c.get("attn_config") or {}, first(c, "hidden_size", "n_embd", "d_model", "n_embed", "dim")
    keys = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads")
    kv_heads = first(c, *keys, default=settings.get("kv_n_heads"))
    return heads, kv_heads or heads, width // heads if heads else 0


def shared_metadata(c: Config) -> dict[str, Any]:
    """What the converter writes of most models."""
    heads, kv_heads, _ = heads_of(c)
    width = first(c, "hidden_size", "n_embd", "d_model", "n_embed", "dim")
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


def llama3_factors(c: Config) -> dict[str, Array]:
    """What divides each pair's angle under Llama 3's scaling."""
    scaling, pairs = c["rope_scaling"], first(c, "head_dim", default=heads_of(c)[2]) // 2
    length = 2 * np.pi * c["rope_theta"] ** (np.arange(pairs) / pairs)
    low, high = (scaling[f"{end}_freq_factor"] for end in ("low", "high"))
    share = np.clip((scaling["original_max_position_embeddings"] / length - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)}


@dataclass
class Kind:
    """How llama.cpp has an architecture."""

    arch: str
    change: Callable[[str, Array, Config], Named] = as_is
    metadata: Callable[[Config], dict[str, Any]] = lambda c: {}
    prefix: str = ""
    """What some checkpoints leave out of their names, and the map of names wants."""
    extra: Callable[[Config], dict[str, Array]] = field(default=lambda c: {})
    variant: Callable[[Config], str] | None = None
    """Its name, where that depends on the config."""
    lists: Callable[[dict[str, Array]], dict[str, list[float]]] = lambda named: {}
    """Keys that hold what is published as tensors."""
