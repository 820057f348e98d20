"""Llama's body under other names: EXAONE 3 (LG AI Research 2024) and InternLM2 (Cai et al. 2024)."""

from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Names, PreNorm, grouped_qkv

EXAONE_NAMES = Names(
    {
        "transformer.wte": "embed",
        "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
        "transformer.h.{i}.attn.attention.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}",
        "transformer.h.{i}.attn.attention.out_proj": "layers.{i}.attn.o",
        "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
        "transformer.h.{i}.mlp.{c_fc_0|c_fc_1}": "layers.{i}.mlp.gate_up.{gate|up}",
        "transformer.h.{i}.mlp.c_proj": "layers.{i}.mlp.down",
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    ignored=("transformer.h.{i}.attn.attention.rotary.inv_freq", "transformer.rotary.inv_freq"),
    prefix="transformer.",
)


@architecture(
    "ExaoneForCausalLM",
    about="EXAONE-3",
    examples=("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct",),
    gguf=GGUFFormat("exaone", config=lambda shared, file: {"layer_norm_epsilon": shared["rms_norm_eps"]}),
)
def exaone(c: Config) -> CausalLM:
    size = c.get("intermediate_size", 4 * c.hidden_size)
    c = c.replace(rms_norm_eps=c.layer_norm_epsilon, hidden_act=c.activation_function, intermediate_size=size)
    norm, attn, mlp = rms_norm(c), attention(c), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), EXAONE_NAMES)


def internlm2_names(num_kv_heads: int, group: int, head_dim: int) -> Names:
    return Names(
        {
            "model.tok_embeddings": "embed",
            "model.layers.{i}.attention_norm": "layers.{i}.attn_norm",
            "model.layers.{i}.attention.wqkv": grouped_qkv("layers.{i}.attn.qkv", num_kv_heads, group, head_dim),
            "model.layers.{i}.attention.wo": "layers.{i}.attn.o",
            "model.layers.{i}.ffn_norm": "layers.{i}.mlp_norm",
            "model.layers.{i}.feed_forward.{w1|w3}": "layers.{i}.mlp.gate_up.{gate|up}",
            "model.layers.{i}.feed_forward.w2": "layers.{i}.mlp.down",
            "model.norm": "norm",
            "output": "head",
        },
        prefix="model.",
    )


@architecture(
    "InternLM2ForCausalLM",
    about="InternLM2",
    examples=("internlm/internlm2-7b", "internlm/internlm2-chat-7b"),
    gguf=GGUFFormat(
        "internlm2",
        config=lambda shared, file: {"bias": shared["attention_bias"]},
        names={"model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}"},
        undo=UNPERMUTE,
    ),
)
def internlm2(c: Config) -> CausalLM:
    num_heads, bias = c.num_attention_heads, c.bias
    num_kv_heads = c.get("num_key_value_heads", num_heads)
    names = internlm2_names(num_kv_heads, num_heads // num_kv_heads, c.hidden_size // num_heads)
    norm, attn, mlp = rms_norm(c), attention(c, bias=bias, out_bias=bias), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), names)
