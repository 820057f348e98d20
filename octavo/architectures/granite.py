"""Granite 3.0 (IBM 2024): Llama's body with four multipliers; Granite MoE with experts in stacked tensors."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, GatedMLP, MoE, Names, stacked

EXPERT = "layers.{i}.mlp.inner.experts.{e}"
MOE_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.block_sparse_moe.router.layer": "layers.{i}.mlp.inner.router",
        "model.layers.{i}.block_sparse_moe.input_linear": stacked(EXPERT + ".gate_up"),
        "model.layers.{i}.block_sparse_moe.output_linear": stacked(EXPERT + ".down"),
    },
    IGNORED,
    prefix="model.",
)


def multipliers(c: Config) -> dict[str, Any]:
    """The four, and the biases."""
    bias = c.attention_bias
    return {
        "embed_scale": c.embedding_multiplier,
        "residual_scale": c.residual_multiplier,
        "logit_scale": 1.0 / c.logits_scaling,
        "scale": c.attention_multiplier,
        "bias": bias,
        "out_bias": bias,
    }


def topk_then_softmax(top_k: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of the chosen experts' logits alone."""
    values, experts = logits.topk(top_k, dim=-1)
    return torch.softmax(values, -1), experts


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "embedding_multiplier": file.value("embedding_scale"),
        "residual_multiplier": file.value("residual_scale"),
        "attention_multiplier": file.value("attention.scale"),
        "logits_scaling": file.value("logit_scale"),
    }


@architecture(
    "GraniteForCausalLM",
    about="Granite 3.0, PowerLM",
    examples=("ibm-granite/granite-3.0-2b-base", "ibm-granite/granite-3.0-8b-instruct", "ibm/PowerLM-3b"),
    gguf=GGUFFormat("granite", config=_from_gguf, undo=UNPERMUTE),
)
def granite(c: Config) -> CausalLM:
    return llama_body(c, mlp=gated_mlp(c, c.mlp_bias), **multipliers(c))


@architecture(
    "GraniteMoeForCausalLM",
    about="Granite 3.0 MoE, PowerMoE",
    examples=("ibm-granite/granite-3.0-1b-a400m-base", "ibm/PowerMoE-3b"),
    gguf=GGUFFormat(
        "granitemoe",
        config=_from_gguf,
        names={
            "model.layers.{i}.block_sparse_moe.experts.{e}.{w1|w3}": EXPERT + ".gate_up.{gate|up}",
            "model.layers.{i}.block_sparse_moe.experts.{e}.w2": EXPERT + ".down",
        },
        undo=UNPERMUTE,
    ),
)
def granite_moe(c: Config) -> CausalLM:
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_act)
    route = partial(topk_then_softmax, c.num_experts_per_tok)
    count = c.num_local_experts
    return llama_body(
        c,
        mlp=lambda layer: MoE(c.hidden_size, [expert() for _ in range(count)], route),
        names=MOE_NAMES,
        **multipliers(c),
    )
