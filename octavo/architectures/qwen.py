"""Qwen (Bai et al. 2023): Llama's body under GPT-2's names, with fused q, k, v that have biases."""

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.llama import gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Names

NAMES = Names(
    {
        "transformer.wte": "embed",
        "transformer.h.{i}.ln_1": "layers.{i}.attention.norm",
        "transformer.h.{i}.attn.c_attn": "layers.{i}.attention.inner.qkv",
        "transformer.h.{i}.attn.c_proj": "layers.{i}.attention.inner.o",
        "transformer.h.{i}.ln_2": "layers.{i}.mlp.norm",
        "transformer.h.{i}.mlp.{w2|w1}": "layers.{i}.mlp.inner.gate_up.{gate|up}",
        "transformer.h.{i}.mlp.c_proj": "layers.{i}.mlp.inner.down",
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    ignored=("transformer.rotary_emb.inv_freq",),
    prefix="transformer.",
)


@architecture(
    "QWenLMHeadModel",
    about="Qwen",
    examples=("Qwen/Qwen-7B", "Qwen/Qwen-7B-Chat"),
    gguf=GGUFFormat(
        "qwen",
        config=lambda shared, file: {
            "layer_norm_epsilon": shared["rms_norm_eps"],
            "kv_channels": shared.get("head_dim"),
            "seq_length": shared["max_position_embeddings"],
        },
    ),
)
def qwen(c: Config) -> CausalLM:
    """Dynamic NTK and logn attention act beyond seq_length, which is as far as a request may go."""
    renamed = c.replace(
        intermediate_size=c.intermediate_size // 2,  # it counts both halves
        rms_norm_eps=c.layer_norm_epsilon,
        head_dim=c.get("kv_channels", c.hidden_size // c.num_attention_heads),
        hidden_act="silu",
    )
    return llama_body(renamed, mlp=gated_mlp(renamed), names=NAMES, bias=True)
