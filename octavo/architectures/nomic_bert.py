"""Nomic's BERT (Nussbaum et al. 2024): rope, a gated feed-forward, norms after the pieces."""

from functools import partial
from typing import Any

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, has
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope_config import make_rope
from octavo.parts import (
    MLP,
    BidirectionalAttention,
    CausalLM,
    Embedding,
    GatedMLP,
    Into,
    LayerNorm,
    Names,
    PostNorm,
    TextEmbedding,
    TextEncoder,
)

NAMES = Names(
    {
        "embeddings.{word|token_type}_embeddings": "embed.{tokens|types}",
        "emb_ln": "embed.norm",
        "encoder.layers.{i}.norm1": "layers.{i}.attn_norm",
        "encoder.layers.{i}.attn.Wqkv": "layers.{i}.attn.qkv",
        "encoder.layers.{i}.attn.out_proj": "layers.{i}.attn.o",
        "encoder.layers.{i}.norm2": "layers.{i}.mlp_norm",
        "encoder.layers.{i}.mlp.{fc12|fc11}": "layers.{i}.mlp.gate_up.{gate|up}",
        "encoder.layers.{i}.mlp.fc2": "layers.{i}.mlp.down",
    }
)
PLAIN: dict[str, str | Into] = {"encoder.layers.{i}.mlp.fc1": "layers.{i}.mlp.up"}
GATES = {"swiglu": "silu", "geglu": "gelu"}


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    types = file.tensors.get("token_types.weight")
    return {
        "activation_function": "swiglu" if has(file, "ffn_gate.weight") else "gelu",
        "type_vocab_size": 0 if types is None else types.shape[0],
        "qkv_proj_bias": has(file, "attn_qkv.bias"),
        "mlp_fc1_bias": has(file, "ffn_up.bias"),
        "mlp_fc2_bias": has(file, "ffn_down.bias"),
        "n_inner": shared["intermediate_size"],
        "rotary_emb_interleaved": False,
    }


@architecture(
    "NomicBertModel",
    about="Nomic's embedders",
    examples=("nomic-ai/nomic-embed-text-v1.5",),
    tasks=EMBEDS,
    gguf=GGUFFormat("nomic-bert", config=_from_gguf),
)
def nomic_bert(c: Config) -> CausalLM:
    for key in ("prenorm", "parallel_block", "use_rms_norm", "causal"):
        if c.get(key):
            raise ValueError(f"{key} is not supported")
    size, heads, kind = c.hidden_size, c.num_attention_heads, str(c.get("activation_function", "swiglu"))
    interleaved = bool(c.get("rotary_emb_interleaved"))
    rope = make_rope(c, size // heads, interleaved=interleaved)
    norm, inner = (
        partial(LayerNorm, size, c.first("layer_norm_epsilon", "layer_norm_eps", default=1e-12)),
        c.first("n_inner", "intermediate_size", default=4 * size),
    )
    bias = bool(c.get("mlp_fc1_bias"))
    if bias != bool(c.get("mlp_fc2_bias")):
        raise ValueError("mlp_fc1_bias and mlp_fc2_bias must be alike")
    gate = GATES.get(kind)

    def mlp() -> GatedMLP | MLP:
        return GatedMLP(size, inner, gate, bias) if gate else MLP(size, inner, kind, bias)

    def layer(i: int) -> PostNorm:
        attn = BidirectionalAttention(size, heads, rope=rope, bias=bool(c.get("qkv_proj_bias")))
        return PostNorm(norm, attn=attn, mlp=mlp())

    types = c.get("type_vocab_size", 0)
    embed = TextEmbedding(Embedding(c.vocab_size, size), types=Embedding(types, size) if types else None, norm=norm())
    return TextEncoder(embed, layer, c.num_hidden_layers, size, NAMES if gate else NAMES.extended(PLAIN))
