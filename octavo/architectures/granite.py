"""Granite 3.0 (IBM 2024): Llama's body with four multipliers; Granite MoE with experts in stacked tensors."""

from collections.abc import Callable
from typing import Any

from torch import nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Embedding, GatedMLP, Into, Linear, Names, PreNorm, softmax_then_topk, stacked

EXPERT = "layers.{i}.mlp.experts.{e}"
MOE_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.block_sparse_moe.router.layer": "layers.{i}.mlp.router",
        "model.layers.{i}.block_sparse_moe.input_linear": stacked(EXPERT + ".gate_up"),
        "model.layers.{i}.block_sparse_moe.output_linear": stacked(EXPERT + ".down"),
    }
)

SHARED_NAMES = MOE_NAMES.extended(
    {
        "model.layers.{i}.shared_mlp.input_linear": "layers.{i}.mlp.shared.gate_up",
        "model.layers.{i}.shared_mlp.output_linear": "layers.{i}.mlp.shared.down",
    }
)


def body(c: Config, mlp: Callable[[], nn.Module], names: Names = NAMES) -> CausalLM:
    """Four multipliers around `mlp`."""
    norm, bias, scale = rms_norm(c), c.attention_bias, c.residual_multiplier
    attn = attention(c, bias=bias, out_bias=bias, scale=c.attention_multiplier)
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(), scale=scale),
        names,
        embed=Embedding(c.vocab_size, c.hidden_size, c.embedding_multiplier),
        logit_scale=1.0 / c.logits_scaling,
    )


def granite_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """What a file leaves out is not done. The name of its experts' part that all tokens share is DeepSeek's."""
    head_dim = shared.get("head_dim", shared["hidden_size"] // shared["num_attention_heads"])
    return {
        "embedding_multiplier": file.value("embedding_scale") or 1.0,
        "residual_multiplier": file.value("residual_scale") or 1.0,
        "attention_multiplier": file.value("attention.scale") or head_dim**-0.5,
        "logits_scaling": file.value("logit_scale") or 1.0,
        "shared_intermediate_size": file.value("expert_shared_feed_forward_length", 0),
    }


def _scales(c: Config) -> dict[str, float]:
    """For a file's header."""
    return {
        "embedding_scale": float(c.embedding_multiplier),
        "residual_scale": float(c.residual_multiplier),
        "attention.scale": float(c.attention_multiplier),
        "logit_scale": float(c.logits_scaling),
    }


GGUF_NAMES: dict[str, str | Into] = {
    "model.layers.{i}.block_sparse_moe.experts.{e}.{w1|w3}": EXPERT + ".gate_up.{gate|up}",
    "model.layers.{i}.block_sparse_moe.experts.{e}.w2": EXPERT + ".down",
    "model.layers.{i}.mlp.shared_experts.{gate|up}_proj": "layers.{i}.mlp.shared.gate_up.{gate|up}",
    "model.layers.{i}.mlp.shared_experts.down_proj": "layers.{i}.mlp.shared.down",
}


def _has_shared(file: GGUFHeader) -> bool:
    return bool(file.value("expert_shared_feed_forward_length"))


@architecture(
    "GraniteForCausalLM",
    about="Granite 3.0, PowerLM",
    examples=("ibm-granite/granite-3.0-2b-base", "ibm-granite/granite-3.0-8b-instruct", "ibm/PowerLM-3b"),
    gguf=GGUFFormat("granite", config=granite_from_gguf, undo=UNPERMUTE, header=_scales),
)
def granite(c: Config) -> CausalLM:
    return body(c, gated_mlp(c, c.mlp_bias))


@architecture(
    "GraniteMoeForCausalLM",
    about="Granite 3.0 MoE, PowerMoE",
    examples=("ibm-granite/granite-3.0-1b-a400m-base", "ibm/PowerMoE-3b"),
    gguf=GGUFFormat("granitemoe", granite_from_gguf, GGUF_NAMES, UNPERMUTE, when=lambda file: not _has_shared(file)),
)
def granite_moe(c: Config) -> CausalLM:
    route = softmax_then_topk(c.num_experts_per_tok)  # the same as a softmax over the chosen ones' logits
    return body(c, moe(c, gated_mlp(c), c.num_local_experts, route), MOE_NAMES)


@architecture(
    "GraniteMoeSharedForCausalLM",
    about="Granite MoE shared",
    examples=("ibm-research/moe-7b-1b-active-shared-experts",),
    gguf=GGUFFormat("granitemoe", granite_from_gguf, GGUF_NAMES, UNPERMUTE, when=_has_shared),
)
def granite_moe_shared(c: Config) -> CausalLM:
    """An expert of shared_intermediate_size beside the others, which every token goes through."""
    route, size = softmax_then_topk(c.num_experts_per_tok), c.shared_intermediate_size
    expert, count = gated_mlp(c), c.num_local_experts

    def mlp() -> MoEWithShared:
        shared = GatedMLP(c.hidden_size, size, c.hidden_act) if size else None
        return MoEWithShared(Linear(c.hidden_size, count, exact=True), [expert() for _ in range(count)], route, shared)

    return body(c, mlp, SHARED_NAMES)
