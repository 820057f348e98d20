"""Phi-3 and Phi-3.5 (Abdin et al. 2024): Llama's body with fused q, k, v and gate, up; PhiMoE with its sparse mixer."""

from functools import partial

import torch
from torch import Tensor

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.llama import FRAME_NAMES, IGNORED, gated_mlp, llama_body
from octavo.architectures.mistral import MIXTRAL_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
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
    bias = c.attention_bias
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_act)
    route = partial(sparse_mixer, c.router_jitter_noise)
    count = c.num_local_experts
    if c.num_experts_per_tok != 2:
        raise UnsupportedModelError("config.json: num_experts_per_tok must be 2; the sparse mixer chooses two experts.")
    return llama_body(
        c,
        mlp=lambda layer: MoE(c.hidden_size, [expert() for _ in range(count)], route),
        names=MIXTRAL_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.rms_norm_eps),
        window=lambda layer: c.get("sliding_window"),
        head_bias=c.lm_head_bias,
        bias=bias,
        out_bias=bias,
    )
