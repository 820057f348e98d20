"""Phi-3 and Phi-3.5 (Abdin et al. 2024): Llama's body with fused q, k, v and gate, up; PhiMoE with its sparse mixer."""

from functools import partial

import torch
from torch import Tensor

from octavo.architectures.config import Config
from octavo.architectures.gguf import GGUFFormat
from octavo.architectures.llama import FRAME_NAMES, IGNORED, gated_mlp, llama_body
from octavo.architectures.mistral import MIXTRAL_NAMES
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, GatedMLP, LayerNorm, MoE, Names

NAMES = Names(
    {
        **FRAME_NAMES,
        "model.layers.{i}.self_attn.qkv_proj": "layers.{i}.attention.inner.qkv",
        "model.layers.{i}.mlp.gate_up_proj": "layers.{i}.mlp.inner.gate_up",
        "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.inner.down",
    },
    IGNORED,
    prefix="model.",
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
    return llama_body(
        c,
        mlp=gated_mlp(c),
        names=NAMES,
        window=lambda layer: c.get("sliding_window"),
        turning=c.get("partial_rotary_factor", 1.0),
    )


def sparse_mixer(noise: float, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Two experts, each weighted by a softmax over those that are not much worse than it (Liu et al. 2023).

    "Much worse" is a relative distance of more than twice `noise`, at inference too.
    """
    weights, chosen = [], []
    left = logits
    for _ in range(2):
        best, expert = left.max(-1, keepdim=True)
        worse = (best - logits) / logits.abs().maximum(best) > 2 * noise
        weights.append(torch.softmax(left.masked_fill(worse, -torch.inf), -1).gather(-1, expert))
        chosen.append(expert)
        left = left.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, -1), torch.cat(chosen, -1)


@architecture(
    "PhiMoEForCausalLM",
    "PhimoeForCausalLM",
    about="Phi-3.5-MoE",
    examples=("microsoft/Phi-3.5-MoE-instruct",),
    gguf=GGUFFormat("phimoe", config=lambda shared, file: {"lm_head_bias": "output.bias" in file.tensors}),
)
def phimoe(c: Config) -> CausalLM:
    bias = c.get("attention_bias", False)
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.get("hidden_act", "silu"))
    choose = partial(sparse_mixer, c.get("router_jitter_noise", 0.01))
    count = c.get("num_local_experts", 16)
    return llama_body(
        c,
        mlp=lambda layer: MoE(c.hidden_size, [expert() for _ in range(count)], choose),
        names=MIXTRAL_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.get("rms_norm_eps", 1e-5)),
        window=lambda layer: c.get("sliding_window"),
        head_bias=c.get("lm_head_bias", False),
        bias=bias,
        out_bias=bias,
    )
