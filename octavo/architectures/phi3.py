"""Phi-3 and Phi-3.5 (Abdin et al. 2024): Llama's body with fused q, k, v and gate, up; PhiMoE with its sparse mixer."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.mistral import MIXTRAL_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, LayerNorm, PreNorm

PHI3_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.self_attn.qkv_proj": "layers.{i}.attn.qkv",
        "model.layers.{i}.mlp.gate_up_proj": "layers.{i}.mlp.gate_up",
    }
)


@architecture(
    "Phi3ForCausalLM",
    about="Phi-3, Phi-3.5",
    examples=(
        "microsoft/Phi-3-mini-4k-instruct",
        "microsoft/Phi-3-mini-128k-instruct",
        "microsoft/Phi-3.5-mini-instruct",
    ),
    gguf=GGUFFormat("phi3"),
)
def phi3(c: Config) -> CausalLM:
    norm, attn, mlp = rms_norm(c), attention(c, window=c.get("sliding_window")), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), PHI3_NAMES)


@architecture(
    "PhiMoEForCausalLM",
    "PhimoeForCausalLM",
    about="Phi-3.5-MoE",
    examples=("microsoft/Phi-3.5-MoE-instruct",),
    gguf=GGUFFormat("phimoe", config=lambda shared, file: {"lm_head_bias": "output.bias" in file.tensors}),
)
def phimoe(c: Config) -> CausalLM:
    if c.num_experts_per_tok != 2:
        raise UnsupportedModelError("config.json: num_experts_per_tok must be 2; the sparse mixer chooses two experts.")
    norm, bias = partial(LayerNorm, c.hidden_size, c.rms_norm_eps), c.attention_bias
    attn = attention(c, window=c.get("sliding_window"), bias=bias, out_bias=bias)
    mlp = moe(c, gated_mlp(c), c.num_local_experts, RouterSpec(2, noise=c.router_jitter_noise))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), MIXTRAL_NAMES, head_bias=c.lm_head_bias)
