"""Qwen (Bai et al. 2023): Llama's body under GPT-2's names, with fused q, k, v that have biases.

A config with `visual` is Qwen-VL's.
"""

from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.qwen_vl import QwenVLTower
from octavo.architectures.qwen_vl import names as visual_names
from octavo.architectures.registry import architecture
from octavo.media.processors.qwen_vl import QwenVLProcessor
from octavo.parts import CausalLM, Names, PreNorm

NAMES = Names(
    {
        "transformer.wte": "embed",
        "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
        "transformer.h.{i}.attn.c_attn": "layers.{i}.attn.qkv",
        "transformer.h.{i}.attn.c_proj": "layers.{i}.attn.o",
        "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
        "transformer.h.{i}.mlp.{w2|w1}": "layers.{i}.mlp.gate_up.{gate|up}",
        "transformer.h.{i}.mlp.c_proj": "layers.{i}.mlp.down",
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    ignored=("transformer.rotary_emb.inv_freq",),
    prefix="transformer.",
)


@architecture(
    "QWenLMHeadModel",
    about="Qwen, Qwen-VL",
    examples=("Qwen/Qwen-7B", "Qwen/Qwen-7B-Chat", "Qwen/Qwen-VL", "Qwen/Qwen-VL-Chat"),
    gguf=GGUFFormat(
        "qwen",
        config=lambda shared, file: {
            "layer_norm_epsilon": shared["rms_norm_eps"],
            "kv_channels": shared.get("head_dim"),
            "seq_length": shared["max_position_embeddings"],
        },
    ),
    media=lambda c: QwenVLProcessor if c.get("visual") else None,
)
def qwen(c: Config) -> CausalLM:
    """Dynamic NTK and logn attention act beyond seq_length, which is as far as a request may go."""
    c = c.replace(
        intermediate_size=c.intermediate_size // 2,  # it counts both halves
        rms_norm_eps=c.layer_norm_epsilon,
        head_dim=c.get("kv_channels", c.hidden_size // c.num_attention_heads),
        hidden_act="silu",
    )
    norm, attn, mlp = rms_norm(c), attention(c, bias=True), gated_mlp(c)
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), NAMES)
    if not (visual := c.section("visual")).values:
        return model
    return model.with_media(QwenVLTower(visual), visual_names(visual))
