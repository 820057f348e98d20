"""ChatGLM2, ChatGLM3 and GLM-4 (GLM Team 2024): Llama's body under other names, rope on half of each head.

A config with a vision_config is GLM-4V's.
"""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.glm4v import NAMES as VISION_NAMES
from octavo.architectures.glm4v import GLM4VTower
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.media.processors.glm4v import GLM4VProcessor
from octavo.parts import (
    Attention,
    CausalLM,
    Embedding,
    FromNormed,
    GatedMLP,
    LayerNorm,
    Linear,
    Names,
    PreNorm,
    RMSNorm,
)

NAMES = Names(
    {
        "transformer.embedding.word_embeddings": "embed",
        "transformer.encoder.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
        "transformer.encoder.layers.{i}.self_attention.query_key_value": "layers.{i}.attn.qkv",
        "transformer.encoder.layers.{i}.self_attention.dense": "layers.{i}.attn.o",
        "transformer.encoder.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
        "transformer.encoder.layers.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.gate_up",
        "transformer.encoder.layers.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
        "transformer.encoder.final_layernorm": "norm",
        "transformer.output_layer": "head",
    },
    ignored=("transformer.rotary_pos_emb.inv_freq",),
    prefix="transformer.",
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "padded_vocab_size": shared["vocab_size"],
        "ffn_hidden_size": shared["intermediate_size"],
        "multi_query_attention": True,
        "multi_query_group_num": shared["num_key_value_heads"],
        "layernorm_epsilon": shared["rms_norm_eps"],
        "kv_channels": shared.get("head_dim"),
        "rope_ratio": shared["rope_theta"] / 10000.0,
        "add_qkv_bias": bool({"blk.0.attn_qkv.bias", "blk.0.attn_q.bias"} & file.tensors.keys()),
    }


@architecture(
    "ChatGLMModel",
    "ChatGLMForConditionalGeneration",
    about="ChatGLM2, ChatGLM3, GLM-4, GLM-4V",
    examples=("THUDM/chatglm2-6b", "THUDM/chatglm3-6b", "THUDM/glm-4-9b-chat", "THUDM/glm-4v-9b"),
    gguf=GGUFFormat(
        "chatglm",
        config=_from_gguf,
        names={"model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}"},  # GLM-4 of transformers
    ),
    media=lambda c: GLM4VProcessor if c.get("vision_config") else None,
)
def chatglm(c: Config) -> CausalLM:
    hidden_size, num_heads, vocab = c.hidden_size, c.num_attention_heads, c.first("padded_vocab_size", "vocab_size")
    head_dim, bias = c.get("kv_channels", hidden_size // num_heads), c.add_bias_linear
    rope = make_rope(c, head_dim, base=10000.0 * c.rope_ratio, interleaved=True)
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        c.multi_query_group_num if c.multi_query_attention else num_heads,
        head_dim,
        rope=rope,
        bias=bias or c.add_qkv_bias,
        out_bias=bias,
    )
    mlp = partial(GatedMLP, hidden_size, c.ffn_hidden_size, "silu", bias)
    norm = partial(RMSNorm if c.rmsnorm else LayerNorm, hidden_size, c.layernorm_epsilon)
    wiring = FromNormed if c.apply_residual_connection_post_layernorm else PreNorm
    model = CausalLM(
        embed=Embedding(vocab, hidden_size),
        layer=lambda i: wiring(norm, attn=attn(), mlp=mlp()),
        layers=c.num_layers,
        norm=norm() if c.post_layer_norm else nn.Identity(),
        head=Linear(hidden_size, vocab),
        names=NAMES,
        tied=c.tie_word_embeddings,
    )
    if not (vision := c.section("vision_config")).values:
        return model
    return model.with_media(GLM4VTower(vision, hidden_size, c.ffn_hidden_size), VISION_NAMES)
