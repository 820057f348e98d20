"""Falcon (Almazrouei et al. 2023): multi-query 7B, grouped 40B and 11B, and the RW models with ALiBi."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    LayerNorm,
    Names,
    PreNorm,
    SharedNorm,
    SideBySide,
    alibi_slopes,
    grouped_qkv,
)

QKV = "transformer.h.{i}.self_attention.query_key_value"


def names(num_kv_heads: int, group: int, head_dim: int, two_norms: bool) -> Names:
    """`two_norms`: published as ln_attn and ln_mlp."""
    norms = "{ln_attn|ln_mlp}" if two_norms else "{input_layernorm|post_attention_layernorm}"
    return Names(
        {
            "transformer.word_embeddings": "embed",
            f"transformer.h.{{i}}.{norms}": "layers.{i}.{attn|mlp}_norm",
            QKV: grouped_qkv("layers.{i}.attn.qkv", num_kv_heads, group, head_dim),
            "transformer.h.{i}.self_attention.dense": "layers.{i}.attn.o",
            "transformer.h.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
            "transformer.h.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    num_kv_heads, two_norms = shared.get("num_key_value_heads", 1), "blk.0.attn_norm_2.weight" in file.tensors
    return {
        "num_kv_heads": num_kv_heads,
        "multi_query": num_kv_heads == 1,
        "new_decoder_architecture": num_kv_heads > 1,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "bias": False,
        "ffn_hidden_size": shared["intermediate_size"],
    }


def _by_key_head(weight: Tensor, c: Config) -> Tensor:
    """llama.cpp stores all queries, keys, values; published is each key head with its own."""
    num_heads, num_kv_heads = c.num_attention_heads, c.num_kv_heads
    by_head = weight.view(num_heads + 2 * num_kv_heads, -1, *weight.shape[1:])
    query, key, value = torch.split(by_head, [num_heads, num_kv_heads, num_kv_heads])
    groups = query.view(num_kv_heads, num_heads // num_kv_heads, *query.shape[1:])
    return torch.cat([groups, key.unsqueeze(1), value.unsqueeze(1)], dim=1).reshape(weight.shape)


@architecture(
    "FalconForCausalLM",
    "RWForCausalLM",
    about="Falcon",
    examples=("tiiuae/falcon-7b", "tiiuae/falcon-40b", "tiiuae/falcon-rw-7b"),
    gguf=GGUFFormat("falcon", config=_from_gguf, undo={QKV: _by_key_head}),
)
def falcon(c: Config) -> CausalLM:
    hidden_size, num_heads = c.hidden_size, c.num_attention_heads
    head_dim, bias = hidden_size // num_heads, c.bias
    # The first configs of 40B say RefinedWeb and always mean the new decoder.
    said = c.stated("new_decoder_architecture")
    new = c.get("model_type") == "RefinedWeb" if said is None else said
    multi_query = c.multi_query
    num_kv_heads = c.get("num_kv_heads", num_heads) if new else 1 if multi_query else num_heads
    parallel = new or c.parallel_attn
    shared = parallel and not (new and c.get("num_ln_in_parallel_attn", 2) == 2)
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    alibi = c.alibi
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        num_kv_heads,
        head_dim,
        rope=None if alibi else make_rope(c, head_dim),
        bias=bias,
        out_bias=bias,
        # Falcon adds the bias inside the scaling.
        alibi=alibi_slopes(num_heads) * head_dim**-0.5 if alibi else None,
    )
    mlp = partial(MLP, hidden_size, c.get("ffn_hidden_size", 4 * hidden_size), c.activation, bias=bias)
    wiring = SharedNorm if shared else SideBySide if parallel else PreNorm
    return decoder(
        c,
        norm,
        lambda i: wiring(norm, attn=attn(), mlp=mlp()),
        names(num_kv_heads, num_heads // num_kv_heads, head_dim, two_norms=new and not shared),
    )
